"""Result tables: a row a cell, mean and spread over seeds, from metrics artifacts alone. Never imports torch."""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from quest.artifacts import JsonArtifact
from quest.config import policies
from quest.config.quantizer import FACTORED
from quest.config.values import FULL_PRECISION, Bits
from quest.report import ahead, sheet
from quest.report import convergence as learned
from quest.report.rows import MISSING, Row, backend, chain, label, named, order, row_key, title
from quest.report.sheet import Sheet


class Column(NamedTuple):
    """How a number of the rows is written for people."""

    key: str
    header: str
    digits: int
    scale: float = 1.0


COLUMNS = (
    Column("fid", "FID ↓", 2),
    Column("fid_infinity", "FID∞ ↓", 2),
    Column("sfid", "sFID ↓", 2),
    Column("is", "IS ↑", 2),
    Column("precision", "Precision ↑", 3),
    Column("recall", "Recall ↑", 3),
    Column("kid", "KID (10⁻³) ↓", 2, scale=1e3),
    Column("clip", "CLIP ↑", 2),
    Column("psnr", "PSNR to FP (dB) ↑", 2),
    Column("mse", "MSE to FP (10⁻³) ↓", 3, scale=1e3),
    Column("weight_mib", "Size (MiB)", 2),
    Column("gbops", "Cost (GBOPs per call)", 2),
)
# What answers most questions, in this order; the other columns stand in a second table.
HEADLINE = ("fid", "sfid", "psnr", "recall", "weight_mib", "gbops")
METRICS = (
    "fid",
    "fid_infinity",
    "sfid",
    "is",
    "is_unshuffled",
    "precision",
    "recall",
    "kid",
    "clip",
    "psnr",
    "mse",
)
# How a number was computed where there is a choice; rows that differ in one do not stand in one column.
CHOICES = (
    "resize",
    "inception_split_size",
    "kid_block_size",
    "neighbours",
    "manifold_images",
    "clip_model",
    "clip_prompts_sha256",
)
_APART = 3.0  # dB
KEYS = ("dataset", "method", "bits", "seed", "chain_seed")


def build(
    dataset: str, artifacts: Mapping[Path, JsonArtifact], convergence: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The table of cells, metrics artifacts by file: {"dataset", "rows", "summary", "ahead", "sources"}.

    rows as `quest.metrics.measure` wrote them, in table order; summary as `summarize` makes it, with what is known of a
    cell's learned rounding; ahead as `quest.report.ahead` has it; sources gives the settings, input hashes and code
    versions of each row by `row_key`.
    convergence: what `convergence.record` found on the dataset, if anything.
    Raises ValueError when the files are not cells of ``dataset`` measured alike, each once.
    """
    require_one_protocol(dataset, artifacts)
    ordered = sorted(artifacts.values(), key=lambda artifact: order(artifact.content))
    rows = [artifact.content for artifact in ordered]
    sources = {
        row_key(artifact.content): {
            "settings": artifact.manifest.settings,
            "inputs": artifact.manifest.inputs,
            "versions": artifact.manifest.versions,
        }
        for artifact in ordered
    }
    said = learned.of_cells(ordered, convergence)
    summary = [row | said[f"{row['method']}-{row['bits']}"] for row in summarize(rows)]
    errors = {row_key(artifact.content): artifact.manifest.notes.get("mse_of_images", ()) for artifact in ordered}
    return {
        "dataset": dataset,
        "rows": rows,
        "summary": summary,
        "ahead": ahead.build(rows, errors),
        "sources": sources,
    }


def summarize(rows: Sequence[Row]) -> list[Row]:
    """One row for each method and bit-width, in the order of ``rows``: every number's mean over seeds.

    "seeds" says how many there are, "chains" how many quantizations they sample with (none at full precision).
    A metric ``m`` has its spread beside it as ``m_spread``, the sample standard deviation (n − 1); None with one seed.
    A number that a seed lacks is None. What is no number stays if all seeds agree on it, else it is None.
    Errors of a single image set (``m_se``) stay only where there is one seed; over several, the spread says more.
    """
    return [_summary_row(cell) for cell in _cells(rows)]


def _cells(rows: Iterable[Row]) -> list[list[Row]]:
    """The seeds of each method and bit-width, in the order of ``rows``."""
    cells: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        cells.setdefault((row["method"], row["bits"]), []).append(row)
    return list(cells.values())


def frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Rows or a summary as a frame: what names a row first, then the metrics, then the rest by name."""
    present = {name for row in rows for name in row}
    leading = [*KEYS, "seeds", "chains", *(name + suffix for name in METRICS for suffix in ("", "_spread"))]
    names = [name for name in leading if name in present]
    # As objects, so that a column with a gap keeps its integers.
    return pd.DataFrame(rows, columns=[*names, *sorted(present - set(names))], dtype=object)


def to_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV, numbers to their last digit, what is missing left empty."""
    return frame(rows).to_csv(index=False, lineterminator="\n")


def to_markdown(content: Mapping[str, Any]) -> str:
    """The table that `build` made, for reading: what answers, what it was measured with, and the other measures."""
    first, *others = sheets(content)
    parts = [sheet.markdown(first), *first.notes]
    for other in others:
        parts += [f"**{other.title}**", sheet.markdown(other), *other.notes]
    return "\n\n".join(parts) + "\n"


def to_html(content: Mapping[str, Any]) -> str:
    """The same as a page by itself."""
    return sheet.html(f"{content['dataset']}: quality, size and cost", sheets(content))


def sheets(content: Mapping[str, Any]) -> list[Sheet]:
    """The same as tables: of `HEADLINE`, of who is ahead where that can be told, and of the other measures where there
    are any."""
    rows, summary = content["rows"], content["summary"]
    present = {column.key: column for column in COLUMNS if any(row.get(column.key) is not None for row in summary)}
    headline = [present[key] for key in HEADLINE if key in present]
    others = [column for column in present.values() if column not in headline]
    made = [_sheet("Quality, size and cost", headline, summary, _notes(rows, summary))]
    pairs = content["ahead"] if "ahead" in content else ahead.build(rows, {})  # of tables made before it was kept
    if (compared := ahead.sheet(pairs)) is not None:
        made.append(compared)
    if others:
        infinity = "FID∞ is FID extrapolated to infinitely many images." if "fid_infinity" in present else ""
        made.append(_sheet("Other measures of the same images", others, summary, filter(None, [infinity])))
    return made


def _sheet(heading: str, columns: Sequence[Column], summary: Sequence[Row], notes: Iterable[str]) -> Sheet:
    headers = ("Method", "Bits", *(column.header for column in columns))
    names = [" ".join([named(row), *fewer(row, summary), *learned.mark(row)]) for row in summary]
    lines = (
        (name, row["bits"].upper(), *(written(row, column) for column in columns))
        for name, row in zip(names, summary, strict=True)
    )
    return Sheet(heading, headers, tuple(lines), notes=tuple(notes))


def fewer(row: Row, rows: Sequence[Row]) -> list[str]:
    """How many chains or seeds a row has, where others of its table have more. rows: as `summarize` counts."""
    for counted in ("seeds",) if row["method"] == FULL_PRECISION else ("chains", "seeds"):
        most = max(other.get(counted) or 0 for other in rows)
        if 0 < (row.get(counted) or 0) < most:
            return [f"({row[counted]} of {most} {counted})"]
    return []


_OF_CHANNELS = {
    "offsets": "codes are shifted as they are made, so that all channels have one zero point",
    "multiples": "codes times the whole number of their channel are bytes of one scale",
}
"""What a channel may have of its own where a scale is per tensor, and what becomes of it in a kernel."""


def _integers(row: Row) -> list[str] | None:
    """What channels have of their own where a product of a row's integers can be summed before it is scaled; None
    where it cannot."""
    kinds = set(row["activation_granularity"].split(" and "))
    if row.get("weight_granularity", "per_channel") != "per_channel" or not kinds <= set(FACTORED):
        return None
    return [kind for kind in _OF_CHANNELS if kind in kinds]


def _notes(rows: Sequence[Row], summary: Sequence[Row]) -> list[str]:
    """How the rows were measured, and why a size is not what its bits lead one to expect."""
    first = rows[0]
    real = first["reference_images"]
    against = "statistics of a published batch" if real is None else f"{real:,} real ones"
    spread = " Mean ± standard deviation over seeds." if any(row["seeds"] > 1 for row in summary) else ""
    how = (
        f"{first['dataset']}: {first['images']:,} images a cell against {against}, "
        f"features of {first['extractor']}{_resized(first)}, {seeding(rows)}.{spread} "
        f"PSNR and MSE compare with the full-precision (FP) images of the same seeds, values in [0, 1]. {_grids(rows)}"
        f"{MISSING} is not available."
    )
    return [how, *learned.notes(summary), *apart(rows), *_surprising_sizes(summary), *_of_integers(summary)]


def apart(rows: Sequence[Row]) -> list[str]:
    """A sentence on each seed whose PSNR stands alone, by 3 dB and by twice what the cell's others span: a spread does
    not say whether a method varies or lost one chain, or whether something went wrong there."""
    said = []
    for cell in _cells(row for row in rows if row.get("psnr") is not None):
        for lone in cell if len(cell) > 2 else ():
            others = sorted(row["psnr"] for row in cell if row is not lone)
            gap = min(abs(lone["psnr"] - other) for other in others)
            if gap > max(_APART, 2 * (others[-1] - others[0])):
                where, rest = f"{named(lone)} {lone['bits'].upper()}", " and ".join(f"{other:.1f}" for other in others)
                said.append(f"Seed {lone['seed']} of {where} stands apart: {lone['psnr']:.1f} dB, the others {rest}.")
    return said


def _of_integers(summary: Sequence[Row]) -> list[str]:
    """Which rows integer kernels can multiply, and what they do for it beyond a scale a tensor."""
    rows = [row for row in summary if row["method"] != FULL_PRECISION and row.get("activation_granularity")]
    able = [row for row in rows if _integers(row) is not None]
    kinds = {kind for row in able for kind in _integers(row) or ()}
    further = "".join(f"; {kind}: {said}" for kind, said in _OF_CHANNELS.items() if kind in kinds)
    if not rows:
        return []
    if len(able) == len(rows):
        return [f"Integer kernels can multiply every quantized row{further}."]
    which = _some(able, rows) if able else "none of these rows"
    return [
        f"Integer kernels can multiply {which}; the others' scales do not factor out of a sum of integers{further}."
    ]


def _some(chosen: Sequence[Row], rows: Sequence[Row]) -> str:
    """Rows in words, by their bits; by their methods, too, where others have the same bits."""
    parts = []
    for bits in dict.fromkeys(row["bits"] for row in chosen):
        mine, every = ([row for row in some if row["bits"] == bits] for some in (chosen, rows))
        names = "" if len(mine) == len(every) else f" of {', '.join(map(named, mine))}"
        parts.append(f"{bits.upper()}{names}")
    return ", ".join(parts)


def _surprising_sizes(summary: Sequence[Row]) -> list[str]:
    """A sentence where fewer bits take more room than more bits of the same method do."""
    found: dict[tuple[str, str], list[str]] = {}
    for few, many in itertools.permutations(summary, 2):
        bits = [Bits.parse(row["bits"]) for row in (few, many)]
        fewer = bits[0] != bits[1] and bits[0].weight <= bits[1].weight and bits[0].activation <= bits[1].activation
        if few["method"] == many["method"] and fewer and (few.get("weight_mib") or 0) > (many.get("weight_mib") or 0):
            found.setdefault((few["bits"], many["bits"]), []).append(few["method"])
    every = {row["method"] for row in summary} - {FULL_PRECISION}
    sentences = []
    for (few_bits, many_bits), methods in found.items():
        of = "" if set(methods) == every else f" of {', '.join(map(title, methods))}"
        row = next(row for row in summary if (row["method"], row["bits"]) == (methods[0], few_bits))
        scales = _shared(row) if row.get("activation_granularity") else ""
        sentences.append(
            f"{few_bits.upper()}{of} is larger than {many_bits.upper()}: a scale is stored in 32 bits, "
            f"and {f'those of its activations are {scales}' if scales else 'it has more of them'}."
        )
    return sentences


def seeding(rows: Sequence[Row]) -> str:
    """The seeds of ``rows`` in words, and how many quantizations they sample with: what a spread over them is of.

    Where cells differ in it, each kind with its cells; full precision only if its seeds are no other cell's.
    """
    cells: dict[str, dict[int, int | None]] = {}
    for row in rows:
        cells.setdefault(label(row["method"], row["bits"]), {})[row["seed"]] = chain(row)
    kinds: dict[str, list[str]] = {}
    for name, chains in cells.items():
        others = (seeds for other, seeds in cells.items() if other != name)
        if name != title(FULL_PRECISION) or all(set(seeds) != set(chains) for seeds in others):
            kinds.setdefault(_seeding(chains), []).append(name)
    if len(kinds) == 1:
        return next(iter(kinds))
    return "; ".join(f"{', '.join(names)}: {kind}" for kind, names in kinds.items())


def _seeding(chains: Mapping[int, int | None]) -> str:
    """The seeds of one cell in words. chains: seed to the seed of its chain."""
    seeds = _seeds(chains)
    own = {quantized for quantized in chains.values() if quantized is not None}
    if not own or list(chains) == list(chains.values()):
        return f"{seeds}, one whole chain each" if len(own) > 1 else seeds
    if len(own) > 1:
        many = f"{len(own)} quantizations (of {_seeds(own)}), sampling {seeds}"
        return f"{many}, so seeds that share one differ in sampling alone"
    alone = ", so the spread is that of sampling alone" if len(chains) > 1 else ""
    return f"one quantization (of {_seeds(own)}), sampling {seeds}{alone}"


def _seeds(seeds: Collection[int]) -> str:
    return f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, sorted(seeds)))}"


def _grids(rows: Sequence[Row]) -> str:
    """What shares a scale, of weights where it is not a channel, and which layers each method quantizes."""
    quantized = [row for row in rows if row.get("activation_granularity")]
    if not quantized:
        return ""
    layers = {title(row["method"]): row.get("policy", "common") for row in quantized}
    kinds = {*layers.values()}
    which = kinds.pop() if len(kinds) == 1 else ", ".join(f"{each} for {name}" for name, each in layers.items())
    weights = {row.get("weight_granularity", "per_channel").replace("_", " ") for row in quantized} - {"per channel"}
    grouped = f"Weight scales: {', '.join(sorted(weights))}. " if weights else ""
    levels = _too_many_levels(quantized)
    return f"{grouped}Activation scales: {_activation_scales(quantized)}; layers: {which}. {levels}"


def _activation_scales(rows: Sequence[Row]) -> str:
    """What shares an activation scale at each bit-width; where methods differ in it, of which."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        names = found.setdefault(row["bits"].upper(), {}).setdefault(_shared(row), [])
        names += [] if title(row["method"]) in names else [title(row["method"])]
    return ", ".join(
        f"{each} at {bits}" if len(kinds) == 1 else f"{each} at {bits} of {' and '.join(names)}"
        for bits, kinds in found.items()
        for each, names in kinds.items()
    )


def _shared(row: Row) -> str:
    """What shares an activation scale, in words."""
    words = row["activation_granularity"].replace("offsets", "per tensor with a zero point per channel")
    return words.replace("multiples", "per tensor with a zero point and a multiple per channel").replace("_", " ")


def _too_many_levels(rows: Sequence[Row]) -> str:
    """Which cells have more activation levels than their bits hold, and how many."""
    allowed = {row_key(row): 2 ** Bits.parse(row["bits"]).activation for row in rows}
    found = {
        label(row["method"], row["bits"]): (row["activation_levels"], allowed[row_key(row)])
        for row in rows
        if row.get("activation_levels", 0) > allowed[row_key(row)]
    }
    return "".join(f"{name} has {has} activation levels, not {most}. " for name, (has, most) in found.items())


def _resized(row: Row) -> str:
    resize = row.get("resize", "none")
    return "" if resize == "none" else f" (resize {resize})"


def require_one_protocol(dataset: str, artifacts: Mapping[Path, JsonArtifact]) -> None:
    """Raise ValueError, naming the file, unless all are cells of ``dataset`` measured alike, each once, and under one
    policy but for variants that say theirs."""
    found: dict[str, Path] = {}
    for file, artifact in artifacts.items():
        key = row_key(artifact.content)
        if key in found:
            raise ValueError(f"{file}: the same cell as {found[key]}")
        found[key] = file
    require_alike(dataset, artifacts)
    _require_one_policy(artifacts)


def _require_one_policy(artifacts: Mapping[Path, JsonArtifact]) -> None:
    silent = {
        file: _policy(artifact)
        for file, artifact in artifacts.items()
        if artifact.content["method"] != FULL_PRECISION and policies.said(artifact.content["method"]) is None
    }
    first, expected = next(iter(silent.items()), (None, None))
    for file, found in silent.items():
        if found != expected:
            raise ValueError(
                f"{file}: policy is {found!r}, but {expected!r} in {first}; a column needs one policy, so quantize "
                "under one, or by variants that say theirs, like quest+everything"
            )


def _policy(artifact: JsonArtifact) -> str:
    """The policy that a cell was quantized under, as its settings name it."""
    method = artifact.manifest.settings.get("method") or {}
    return method.get("policy", artifact.content.get("policy", "common"))


def require_alike(dataset: str, artifacts: Mapping[Path, JsonArtifact]) -> None:
    """Raise ValueError, naming the file, unless all were measured alike on ``dataset``."""
    first_file, first = next(iter(artifacts.items()))
    for file, artifact in artifacts.items():
        row = artifact.content
        if row["dataset"] != dataset:
            raise ValueError(f"{file}: measured on {row['dataset']!r}, the table is of {dataset!r}")
        for name, value in _protocol(artifact).items():
            expected = _protocol(first)[name]
            if value != expected:
                raise ValueError(
                    f"{file}: {name} is {_short(value)}, but {_short(expected)} in {first_file}; "
                    "one table needs one protocol, so measure them again alike"
                )


def _short(value: Any) -> str:
    """As Python writes it, a hash by its beginning."""
    is_hash = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)
    return f"{value[:8]}…" if is_hash else repr(value)


def _protocol(artifact: JsonArtifact) -> dict[str, Any]:
    """What must be equal for two rows to be compared."""
    manifest, row = artifact.manifest, artifact.content
    return {
        "extractor": row["extractor_sha256"],
        "reference": manifest.inputs["reference"],
        "model": manifest.inputs["model"],
        "images": row["images"],
        "sampler": manifest.settings.get("sampler"),
        "backend": backend(row),
        **{name: row.get(name) for name in CHOICES},
    }


def _summary_row(rows: Sequence[Row]) -> Row:
    first = rows[0]
    summary: Row = {name: first[name] for name in ("dataset", "method", "bits")}
    summary |= {"seeds": len(rows), "chains": len({chain(row) for row in rows} - {None})}
    for name in dict.fromkeys(name for row in rows for name in row):
        if name in KEYS or name == "is_std":  # a deviation over splits has no place among those over seeds
            continue
        if name.endswith("_se") and len(rows) > 1:
            continue
        values = [row.get(name) for row in rows]
        numbers = [value for value in values if isinstance(value, int | float)]
        complete = len(numbers) == len(rows)
        if len(set(values)) == 1:
            summary[name] = values[0]
        else:
            summary[name] = statistics.fmean(numbers) if complete else None
        if name in METRICS:
            summary[f"{name}_spread"] = statistics.stdev(numbers) if complete and len(rows) > 1 else None
    return summary


def written(row: Row, column: Column) -> str:
    """A number of a summary row for reading, with its spread."""
    value, spread = row.get(column.key), row.get(f"{column.key}_spread")
    if value is None or (row["method"] == FULL_PRECISION and column.key in ("psnr", "mse")):  # its distance to itself
        return MISSING
    return number(column, value, spread)


def number(column: Column, value: float, spread: float | None) -> str:
    """A value and what stands behind its ±, as one word."""
    parts = [part * column.scale for part in (value, spread) if part is not None]
    digits = sheet.decimals(column.digits, *parts)
    return sheet.unbroken(" ± ".join(f"{part:,.{digits}f}" for part in parts))
