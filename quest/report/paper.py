"""One table of `config/published.yaml` on one dataset: what was measured here beside what was published, and where.

A cell that was not measured is missing with its reason, never zero. Never imports torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from quest import paths
from quest.artifacts import JsonArtifact
from quest.config.reading import unknown
from quest.config.values import FULL_PRECISION, Bits, Cell
from quest.report import convergence as learned
from quest.report import sheet, tables
from quest.report.costs import cost as cost_of
from quest.report.published import FAILED, NOT_NAMED, PaperRow, PaperTable, Published
from quest.report.sheet import Sheet
from quest.report.tables import MISSING, Column, Row

COLUMNS = {
    column.key: column
    for column in (
        *tables.COLUMNS,
        Column("size_mb", "Size (MB)", 1),
        Column("hours", "GPU hours", 2),
        Column("seconds", "Seconds", 0),
        Column("memory_mb", "GPU memory (MB)", 0),
        Column("host_mb", "Host memory (MB)", 0),
        Column("trained_share", "Trained (%)", 2, scale=100),
        Column("iterations", "Iterations", 0),
        Column("optimizer_steps", "Optimizer steps", 0),
        Column("activation_levels", "Activation levels", 0),
        Column("mean_activation_bits", "Mean activation bits", 2),
    )
}
_FINETUNE = f"finetune/{{dataset}}/{paths.CELL}.tsv"
_RECONSTRUCT = "reconstruct/{dataset}/{grouping}-{policy}-w{weight_bits}-seed{seed}.tsv"
_MARKS = {None: "", "re-run": "*", "uncertain": "?"}


def build(
    name: str,
    dataset: str,
    published: Published,
    artifacts: Mapping[Path, JsonArtifact],
    absent: str,
    benchmark_folder: Path,
    convergence: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of a table: {"table", "dataset", "title", "rows", "seeding", "convergence"}.

    artifacts: metrics by file, of the table's cells that were measured on ``dataset``; absent: why others were not.
    benchmark_folder: of Snakemake's benchmark files, for seconds and memory. convergence: as `tables.build` takes it.
    A row has name, method, bits,
    published_on, for each column ``<column>``, ``<column>_spread`` and ``<column>_published``, then seeds, chains,
    mark, source, note and missing. Raises ValueError for an unknown table, or metrics that are not of one protocol.
    """
    table = published.table(name)
    if artifacts:
        tables.require_one_protocol(dataset, artifacts)
    measured = summarize(list(artifacts.values()), benchmark_folder)
    rows = [_row(row, table, dataset, published, measured, absent) for row in table.rows]
    shown = {(row["method"], row["bits"]) for row in rows if row["seeds"]}
    measurements = sorted((artifact.content for artifact in artifacts.values()), key=tables.order)
    seeding = tables.seeding([row for row in measurements if (row["method"], row["bits"]) in shown])
    content = {"table": name, "dataset": dataset, "title": table.title, "rows": rows, "seeding": seeding}
    return content | {"convergence": learned.of_cells(artifacts.values(), convergence)}


def summarize(artifacts: Sequence[JsonArtifact], benchmark_folder: Path) -> dict[Cell, Row]:
    """Means and spreads over seeds of every cell, with the seconds and memory of its jobs where they are known."""
    ordered = sorted(artifacts, key=lambda artifact: tables.order(artifact.content))
    summary = tables.summarize([artifact.content | _cost(artifact, benchmark_folder) for artifact in ordered])
    found = {Cell(row["method"], row["bits"]): row for row in summary}
    for cell, row in found.items():
        seconds = {
            tables.chain(artifact.content): cost["seconds"]
            for artifact in ordered
            if (artifact.content["method"], artifact.content["bits"]) == cell
            and (cost := _cost(artifact, benchmark_folder))
        }
        row["seconds_spread"] = statistics.stdev(seconds.values()) if len(seconds) == row["chains"] > 1 else None
    return found


def to_markdown(content: Mapping[str, Any], published: Published) -> str:
    """The content of a table for reading, and sentences on what stands for what."""
    made = shown(content, published)
    return "\n\n".join([f"# {made.title}", sheet.markdown(made), *made.notes]) + "\n"


def to_html(content: Mapping[str, Any], published: Published) -> str:
    """The same as a page by itself."""
    made = shown(content, published)
    return sheet.html(f"{made.title} ({content['dataset']})", [replace(made, title="")])


def shown(content: Mapping[str, Any], published: Published) -> Sheet:
    """The content of a table for reading, under its number in the paper. Raises ConfigError for an unknown table."""
    table, known = published.table(content["table"]), content.get("convergence", {})
    rows = [row | known.get(f"{row['method']}-{row['bits']}", {}) if row["seeds"] else row for row in content["rows"]]
    headers, columns = (
        ["Method", "Bits"],
        [
            [" ".join([row["name"], *tables.fewer(row, rows), *learned.mark(row)]) for row in rows],
            [row["bits"].upper() for row in rows],
        ],
    )
    if any(row["published_on"] for row in rows):
        headers.append("Published on")
        columns.append([row["published_on"] or MISSING for row in rows])
    for column in (_column(key) for key in table.columns):
        if any(row.get(f"{column.key}_published") is not None for row in rows):
            headers.append(f"{column.header}, published")
            columns.append([_published(row, column) for row in rows])
        if any(row.get(column.key) is not None for row in rows):
            headers.append(f"{column.header}, here")
            columns.append([tables.written(row, column) for row in rows])
    remarks = ["; ".join(filter(None, (row["note"], row["missing"]))) for row in rows]
    if any(remarks):
        headers.append("Note")
        columns.append(remarks)
    notes = (_caption(table, content["dataset"], rows, published, content.get("seeding") or _seeds(rows)),)
    words = ("Method", "Bits", "Published on", "Note")
    return Sheet(table.heading, tuple(headers), tuple(zip(*columns, strict=True)), words, notes)


def _seeds(rows: Sequence[Row]) -> str:
    """How many seeds were measured, of a content that does not name them."""
    number = max((row["seeds"] or 0 for row in rows), default=0)
    return f"{number} seed{'s' if number > 1 else ''}" if number else ""


def _caption(table: PaperTable, dataset: str, rows: Sequence[Row], published: Published, seeding: str) -> str:
    named = dict.fromkeys(row["published_on"] for row in rows if row["published_on"])
    places = {name: published.datasets[name] for name in named if name != NOT_NAMED}
    own = dataset in _own(published)  # then rows of other datasets are empty
    alike = [name for name, place in places.items() if not own and place.stand_in == dataset]
    unlike = [name for name, place in places.items() if not own and place.stand_in != dataset]
    parts = [f"Source: {table.source}."]
    if table.note:
        parts.append(f"{table.note[0].upper()}{table.note[1:]}.")
    parts.append(f"Here: {', '.join(filter(None, (dataset, seeding)))}.")
    if alike:
        parts.append(
            f"It stands in for {', '.join(alike)}: the order of the methods may compare, absolute values do not."
        )
    if unlike:
        parts.append(f"It is no stand-in for {', '.join(unlike)}: there even the order of the methods may be another.")
    if NOT_NAMED in named:
        parts.append("Where the source names no dataset, even the order of the methods may be another.")
    if any((row["seeds"] or 0) > 1 for row in rows):
        parts.append("± is the standard deviation over seeds.")
    if any(row["mark"] == "re-run" for row in rows):
        parts.append("* measured by the table's authors for another method.")
    if any(row["mark"] == "uncertain" for row in rows):
        parts.append("? of uncertain origin or setting.")
    if any(row.get(f"{key}_published") == FAILED for row in rows for key in table.columns):
        parts.append(f"{FAILED}: no usable images, in the source's words.")
    sources = dict.fromkeys(f"{row['name']}: {row['source']}" for row in rows if row["source"] != table.source)
    parts += [f"{source}." for source in sources]
    parts += learned.notes(rows)
    return " ".join([*parts, f"{MISSING} is not available."])


def _row(
    row: PaperRow,
    table: PaperTable,
    dataset: str,
    published: Published,
    measured: dict[Cell, Row],
    absent: str,
) -> Row:
    """A row of the artifact."""
    own = _own(published)
    elsewhere = dataset in own and row.dataset not in (None, NOT_NAMED, own[dataset])
    found = None if row.cell is None or elsewhere else measured.get(row.cell)
    missing = None
    if row.method is None:
        missing = f"{row.label} is not implemented here"
    elif row.cell is None:
        missing = f"{row.bits.upper()} is not run here: weights and activations are quantized together"
    elif elsewhere:
        missing = f"not run: the weights of {row.dataset} are not those of {dataset}"
    elif found is None:
        missing = absent
    values: Row = {}
    for key in table.columns:
        values |= {
            key: None if found is None else found.get(key),
            f"{key}_spread": None if found is None else found.get(f"{key}_spread"),
            f"{key}_published": row.published.get(key),
        }
    name = row.label or tables.title(row.method or "", tables.backend(found or {}))
    return {
        "name": name,
        "method": row.method,
        "bits": row.bits,
        "published_on": row.dataset,
        **values,
        "seeds": None if found is None else found["seeds"],
        "chains": None if found is None else found["chains"],
        "mark": row.mark,
        "source": row.source or table.source,
        "note": row.note,
        "missing": missing,
    }


def _own(published: Published) -> dict[str, str]:
    """The papers' datasets that have a protocol here, by its name."""
    return {place.dataset: name for name, place in published.datasets.items() if place.dataset is not None}


def _cost(artifact: JsonArtifact, folder: Path) -> dict[str, float]:
    """Seconds of the jobs that quantize the cell, its learned rounding included, and the memory of the larger one."""
    row = artifact.content
    if row["method"] == FULL_PRECISION or "method" not in artifact.manifest.settings:
        return {}
    rounding = learned.learned(artifact)
    wildcards = {key: row[key] for key in ("dataset", "method", "bits")} | {"seed": tables.chain(row)}
    files = [folder / paths.fill(_FINETUNE, **wildcards)]
    if rounding:
        weight_bits = Bits.parse(row["bits"]).weight
        files.append(folder / paths.fill(_RECONSTRUCT, **wildcards, **rounding._asdict(), weight_bits=weight_bits))
    if not all(file.exists() for file in files):
        return {}
    costs = [cost_of(file) for file in files]
    return {"seconds": sum(cost.seconds for cost in costs), "host_mb": max(cost.memory_mb for cost in costs)}


def _column(key: str) -> Column:
    if key not in COLUMNS:
        raise ValueError(f"columns: {unknown(key, COLUMNS)}")
    return COLUMNS[key]


def _published(row: dict[str, Any], column: Column) -> str:
    value = row.get(f"{column.key}_published")
    if value is None:
        return MISSING
    text = FAILED if value == FAILED else f"{value * column.scale:,.{column.digits}f}"
    return text + _MARKS[row["mark"]]
