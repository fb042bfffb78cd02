"""A cell as an MLflow run, and each of its seeds as one nested under it: from rows and manifests of metrics alone.

A number that was measured is a metric; a fact of the cell is a parameter, and every cell has all of them, full
precision too, so that any two can be compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from quest import paths
from quest.config.methods import base_method
from quest.config.values import FULL_PRECISION, UNQUANTIZED, Bits
from quest.report import protocols, tables
from quest.report.tables import METRICS, MISSING, Row, row_key
from quest.report.tracking import views
from quest.report.tracking.store import Entry
from quest.report.tracking.views import View

MEASURED = (*METRICS, "weight_mib", "gbops")
FACTS = (
    *("method", "bits", "dataset", "images", "reference_images", "extractor", "layers", "full_precision_layers"),
    *("parameters", "weights_quantized", "mean_weight_bits", "mean_activation_bits", "activation_levels", "policy"),
    *("weight_granularity", "activation_granularity", "trained_share", "optimizer_steps"),
)


_DIGITS = 5  # of a metric, as many as MLflow's columns have room for; results.json of the run has all


class Measured(NamedTuple):
    """A row of metrics, and what its manifest says of how it was made."""

    row: Row
    settings: dict[str, Any]
    inputs: dict[str, str]
    versions: dict[str, str]

    @property
    def protocol(self) -> str:
        """A short name of what has to be equal for rows to be compared."""
        choices = {name: self.row.get(name) for name in (*tables.CHOICES, "images", "extractor_sha256")}
        choices |= {"backend": self.row["backend"]} if "backend" in self.row else {}
        parts = [choices, self.settings.get("sampler"), self.inputs.get("reference"), self.inputs.get("model")]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:6]


@dataclass(frozen=True)
class Cell:
    """All seeds of a method at a bit-width that were measured alike."""

    seeds: tuple[Measured, ...]

    @property
    def name(self) -> tuple[str, str, str]:
        row = self.seeds[0].row
        return row["dataset"], row["method"], row["bits"]

    @property
    def protocol(self) -> str:
        return self.seeds[0].protocol

    @property
    def rows(self) -> list[Row]:
        return [seed.row for seed in self.seeds]

    @property
    def key(self) -> str:
        dataset, method, bits = self.name
        return f"{dataset}/{method}-{bits}@{self.protocol}"


def grouped(measured: Sequence[Measured]) -> list[Cell]:
    """The cells of rows in table order. Rows of one cell that were measured otherwise are another cell."""
    found: dict[tuple[str, ...], list[Measured]] = {}
    for each in sorted(measured, key=lambda each: (each.row["dataset"], *tables.order(each.row))):
        row = each.row
        found.setdefault((row["dataset"], row["method"], row["bits"], each.protocol), []).append(each)
    return [Cell(tuple(seeds)) for seeds in found.values()]


def entries(cells: Sequence[Cell]) -> Iterator[Entry]:
    """The runs of cells, each before its seeds; the last cell first, for MLflow shows the newest run on top."""
    shown: dict[str, list[str]] = {}
    for view, inside in views_of(cells).items():
        for cell in inside:
            shown.setdefault(cell.key, []).append(view.name)
    known = {(cell.name, cell.protocol): cell for cell in cells}
    for cell in reversed(cells):
        dataset, method, bits = cell.name
        full = known.get(((dataset, FULL_PRECISION, str(UNQUANTIZED)), cell.protocol))
        base = known.get(((dataset, base_method(method), bits), cell.protocol))
        common = {"protocol": cell.protocol, "changed": _changed(cell, base) if "+" in method else MISSING}
        marks = views.tags(shown.get(cell.key, []))
        yield _cell_entry(cell, common, marks, full)
        for seed in cell.seeds:
            yield _seed_entry(seed, cell, common, marks)


def views_of(cells: Sequence[Cell]) -> dict[View, list[Cell]]:
    """The saved views with the cells in each: of a dataset, of its bit-widths, and of these with variants.

    A dataset that was measured by several protocols has views of each, named by it but for the first
    (`protocols.in_order`). Full precision stands in all.
    """
    found: dict[View, list[Cell]] = {}
    for dataset in dict.fromkeys(cell.name[0] for cell in cells):
        alike: dict[str, list[Cell]] = {}
        for cell in cells:
            if cell.name[0] == dataset:
                alike.setdefault(cell.protocol, []).append(cell)
        for number, own in enumerate(protocols.in_order(alike.values(), _seen)):
            protocol = own[0].protocol
            suffix, words = (f"-{protocol}", f", protocol {protocol}") if number else ("", "")
            plain = [cell for cell in own if "+" not in cell.name[1]]
            found[View(f"{dataset}{suffix}", f"{dataset}{words}")] = plain
            for bits in dict.fromkeys(cell.name[2] for cell in own if cell.name[1] != FULL_PRECISION):
                of_bits = [cell for cell in own if cell.name[2] in (bits, str(UNQUANTIZED))]
                without = [cell for cell in of_bits if cell in plain]
                found[View(f"{dataset}-{bits}{suffix}", f"{dataset} {bits.upper()}{words}")] = without
                if len(of_bits) > len(without):
                    title = f"{dataset} {bits.upper()} with variants{words}"
                    found[View(f"{dataset}-{bits}-variants{suffix}", title)] = of_bits
    return found


def _cell_entry(cell: Cell, common: Mapping[str, str], marks: Mapping[str, str], full: Cell | None) -> Entry:
    (summary,) = tables.summarize(cell.rows)
    _, method, bits = cell.name
    first = next((row for row in cell.rows if _preview(row).exists()), cell.rows[0])
    unquantized = first | {"method": FULL_PRECISION, "bits": str(UNQUANTIZED)}
    pictures = tuple(_preview(row) for row in ([first] if method == FULL_PRECISION else [unquantized, first]))
    checkpoint = Path(paths.fill(paths.CHECKPOINT, **(first | {"seed": tables.chain(first)})))
    return Entry(
        key=cell.key,
        name=tables.label(method, bits, tables.backend(first)),
        params={**_facts(summary), **common, "seeds": ", ".join(str(row["seed"]) for row in cell.rows)},
        metrics=_metrics(summary),
        tags={"mlflow.note.content": _sentence(summary, full)},
        marks=marks,
        dataset=_dataset(cell.seeds[0]),
        artifacts={"results.json": _json({"mean": summary, "seeds": cell.rows}), **_made(cell.seeds)},
        pictures=pictures if all(file.exists() for file in pictures) else (),
        model=checkpoint if checkpoint.exists() else None,
    )


def _seed_entry(seed: Measured, cell: Cell, common: Mapping[str, str], marks: Mapping[str, str]) -> Entry:
    """Its files are with its cell."""
    row = seed.row
    return Entry(
        key=row_key(row),
        name=f"{tables.label(row['method'], row['bits'], tables.backend(row))}, seed {row['seed']}",
        params={**_facts(row), **common, "seeds": str(row["seed"])},
        metrics=_metrics(row),
        tags={},
        marks=marks,
        parent=cell.key,
    )


def _metrics(row: Row) -> dict[str, float]:
    same = ("psnr", "mse") if row["method"] == FULL_PRECISION else ()  # its distance to itself
    found = {name: row[name] for name in MEASURED if row.get(name) is not None and name not in same}
    return {name: float(f"{value:.{_DIGITS}g}") for name, value in found.items()}


def _facts(row: Row) -> dict[str, str]:
    found = {name: row.get(name) for name in FACTS}
    return {name: MISSING if value is None else _text(value) for name, value in found.items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else json.dumps(value)


def _made(seeds: Sequence[Measured]) -> dict[str, str]:
    """What the rows were made from, a file each: settings, hashes of inputs, versions of libraries."""
    by_seed = {row_key(seed.row): seed for seed in seeds}
    return {
        "settings.json": _json(seeds[0].settings),
        "inputs.json": _json({name: seed.inputs for name, seed in by_seed.items()}),
        "versions.json": _json({name: seed.versions for name, seed in by_seed.items()}),
    }


def _dataset(measured: Measured) -> tuple[str, str] | None:
    """The real images that a row was measured against."""
    digest = measured.inputs.get("reference")
    return None if digest is None else (measured.row["dataset"], digest)


def _changed(cell: Cell, base: Cell | None) -> str:
    """What a variant's settings have other than its method's, as ``key=value``; its name where that is not here."""
    if base is None:
        return cell.name[1].partition("+")[2]
    own, other = (_flat(each.seeds[0].settings) for each in (cell, base))
    changed = [f"{name}={_text(own.get(name))}" for name in sorted({*own, *other}) if own.get(name) != other.get(name)]
    return ", ".join(changed) or MISSING


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _sentence(summary: Row, full: Cell | None) -> str:
    """What a cell is and what came out, in one sentence."""
    columns = {column.key: column for column in tables.COLUMNS}
    bits = Bits.parse(summary["bits"])
    what = tables.named(summary)
    if summary["method"] != FULL_PRECISION:
        what += f" with {bits.weight}-bit weights and {bits.activation}-bit activations"
    parts = [f"FID {tables.written(summary, columns['fid'])}"]
    if full is not None and summary["method"] != FULL_PRECISION:
        (reference,) = tables.summarize(full.rows)
        parts[0] += f" (full precision {tables.written(reference, columns['fid'])})"
        parts.append(f"PSNR to full precision {tables.written(summary, columns['psnr'])} dB")
    parts.append(f"{tables.written(summary, columns['weight_mib'])} MiB")
    seeds = summary["seeds"]
    over = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    return f"{what} on {summary['dataset']}: {', '.join(parts)}; {over}."


def _seen(cells: Sequence[Cell]) -> int:
    """Of how many rows images are here."""
    return sum(_preview(row).exists() for cell in cells for row in cell.rows)


def _preview(row: Row) -> Path:
    return Path(paths.fill(paths.PREVIEW, **row))


def _json(content: Any) -> str:
    return json.dumps(content, indent=1, sort_keys=True)
