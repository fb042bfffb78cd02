"""MLflow as a view of the results: a run a cell with its seeds nested under it, and the tables of a suite in one run.

A run is found again by its key, so a rerun adds none. Tables and cells are two experiments, so that charts are of cells
alone. Never imports torch; MLflow itself is imported when it is used.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from quest.artifacts import JsonArtifact, Manifest, listed, load_json, save_json
from quest.report import paper, published, tables
from quest.report.tables import row_key
from quest.report.tracking import cells, store, views
from quest.report.tracking.cells import Cell, Measured
from quest.report.tracking.store import Store

EXPERIMENT, TABLES_EXPERIMENT = "quest", "quest tables"
METRICS, TABLES, FIGURES, PAPER = (Path("results") / name for name in ("metrics", "tables", "figures", "paper"))
RECORDS = "records.json"  # in each folder, of the workflow
_log = logging.getLogger(__name__)


def run(table_files: Sequence[Path], figures: Sequence[Path], output: Path | None, papers: Sequence[Path] = ()) -> None:
    """The `track` stage: every row of the tables as an MLflow run, nested under its cell, and the tables in their run.

    A cell is the mean over all its seeds: those of the tables and those whose metrics lie beside them in
    ``results/metrics``. figures: pictures ``…/<name of the table>/<picture>.png``; with a single table all of them are
    its own. papers: artifacts of `quest.report.paper`.
    output: an artifact of kind "tracking", {"experiment", "runs": {key: fingerprint}}, of what was given alone.
    The store is ``MLFLOW_TRACKING_URI``, or ``mlflow.db`` in the current folder. Raises ValueError for a figure of
    no table.
    """
    given = {file.stem: load_json(file, "table") for file in table_files}
    pictures = dict(_with_figures(list(given), figures))
    paper_tables = [load_json(file, "paper") for file in papers]
    rows = {row_key(each.row): each for artifact in given.values() for each in _rows_of(artifact)}
    of_cells = {_cell_of(each) for each in rows.values()}
    beside = {row_key(each.row): each for each in _measured(METRICS) if _cell_of(each) in of_cells}
    with store.opened(_commit(), str(TABLES)) as opened:
        of_rows = _write_cells(opened, cells.grouped([*(beside | rows).values()]), quiet=True)
        written = {key: of_rows[key] for key in rows}
        for name, artifact in given.items():
            written |= _write_table(opened, name, artifact, pictures[name])
        for artifact in paper_tables:  # of a job, one
            written |= _write_paper(opened, artifact, published.load())
    if output is not None:
        inputs = {name: artifact.manifest.sha256 for name, artifact in given.items()}
        inputs |= {_paper_part(artifact): artifact.manifest.sha256 for artifact in paper_tables}
        save_json(output, {"experiment": EXPERIMENT, "runs": written}, Manifest(kind="tracking", inputs=inputs))


def fill() -> str:
    """Everything in ``results/`` that `dvc pull` brings, into the store. Returns the part of the page's address that
    opens on the first dataset. Raises ValueError when there are no metrics and no table yet."""
    measured = {row_key(each.row): each for each in _measured(METRICS)}
    found = {file.stem: load_json(file, "table") for file in results_in(TABLES, "*.json")}
    measured = {row_key(each.row): each for artifact in found.values() for each in _rows_of(artifact)} | measured
    if not measured:
        raise ValueError(
            f"{METRICS} and {TABLES}: no results yet; `dvc pull` fetches the shared ones, `snakemake` makes them"
        )
    with store.opened(_commit(), str(TABLES)) as opened:
        groups = cells.grouped([*measured.values()])
        _write_cells(opened, groups)
        for name, artifact in found.items():
            _write_table(opened, name, artifact, results_in(FIGURES, f"{name}/*.png"))
        if papers := results_in(PAPER, "*/*.json"):
            known = published.load()
            for file in papers:
                _write_paper(opened, load_json(file, "paper"), known)
        return _write_views(opened, groups)


def results_in(folder: Path, pattern: str) -> list[Path]:
    """The results in ``folder`` that match, without the workflow's own record of them."""
    return [file for file in listed(folder, pattern) if file.name != RECORDS]


def _measured(folder: Path) -> Iterator[Measured]:
    for file in results_in(folder, "*/*.json"):
        artifact = load_json(file, "metrics")
        manifest = artifact.manifest
        yield Measured(artifact.content, manifest.settings, manifest.inputs, manifest.versions)


def _rows_of(artifact: JsonArtifact) -> Iterator[Measured]:
    for row in artifact.content["rows"]:
        yield Measured(row, **artifact.content["sources"][row_key(row)])


def _cell_of(measured: Measured) -> tuple[str, str, str]:
    return measured.row["dataset"], measured.row["method"], measured.row["bits"]


def _write_cells(opened: Store, groups: Sequence[Cell], quiet: bool = False) -> dict[str, str]:
    """The fingerprints of the runs by key."""
    experiment = opened.experiment(EXPERIMENT)
    entries = list(cells.entries(groups))
    fingerprints = {entry.key: entry.fingerprint() for entry in entries}
    bar = tqdm(entries, "MLflow", unit="run", leave=False, disable=quiet or None)
    number = sum(opened.write(experiment, entry, fingerprints[entry.key]) for entry in bar)
    _log.info("%d of %d MLflow runs written to %s, the others were current", number, len(entries), store.address())
    return fingerprints


def _write_table(opened: Store, name: str, artifact: JsonArtifact, figures: Sequence[Path]) -> dict[str, str]:
    """A table as a folder of its suite's run: as a page, as Markdown, as CSV, and its pictures."""
    dataset, _, suite = name.partition(".")
    content = artifact.content
    artifacts: dict[str, str | Path] = {
        "table.html": tables.to_html(content),
        "table.md": tables.to_markdown(content),
        "rows.csv": tables.to_csv(content["rows"]),
        **{file.name: file for file in figures},
    }
    key = f"suite/{suite or 'default'}"
    experiment = opened.experiment(TABLES_EXPERIMENT)
    note = f"The tables and pictures of the {suite or 'default'} run, a folder a dataset: see Artifacts."
    digest, _ = opened.write_part(experiment, key, f"suite {suite or 'default'}", dataset, artifacts, note)
    return {f"{key}/{dataset}": digest}


def _write_paper(opened: Store, artifact: JsonArtifact, known: published.Published) -> dict[str, str]:
    """A table of the papers as a folder of its dataset's run."""
    content = artifact.content
    dataset, name = content["dataset"], content["table"]
    artifacts = {"table.html": paper.to_html(content, known), "table.md": paper.to_markdown(content, known)}
    experiment = opened.experiment(TABLES_EXPERIMENT)
    note = f"The tables of the papers on {dataset}, measured beside published, a folder each: see Artifacts."
    digest, _ = opened.write_part(experiment, f"paper/{dataset}", f"paper's tables, {dataset}", name, artifacts, note)
    return {_paper_part(artifact): digest}


def _paper_part(artifact: JsonArtifact) -> str:
    return f"paper/{artifact.content['dataset']}/{artifact.content['table']}"


def _write_views(opened: Store, groups: Sequence[Cell]) -> str:
    """Save the views, list them in the experiment's description; the address of the first."""
    experiment = opened.experiment(EXPERIMENT)
    found = cells.views_of(groups)
    lines = [f"- [{view.title}]({views.path(experiment, view)})" for view in found]
    note = "Each row is a method at a bit-width, its seeds nested under it. Saved views:\n\n" + "\n".join(lines)
    wanted = {"mlflow.note.content": note, **{views.TAG + view.name: views.state(view) for view in found}}
    present = opened.client.get_experiment(experiment).tags
    for name, value in wanted.items():
        if present.get(name) != value:
            opened.client.set_experiment_tag(experiment, name, value)
    return views.path(experiment, next(iter(found)))


def _with_figures(names: Sequence[str], figures: Sequence[Path]) -> Iterator[tuple[str, list[Path]]]:
    """Each table's name with its pictures."""
    for file in figures:
        if len(names) > 1 and file.parent.name not in names:
            raise ValueError(f"{file}: of {file.parent.name!r}, but the tables are of {', '.join(names)}")
    for name in names:
        yield name, [file for file in figures if len(names) == 1 or file.parent.name == name]


def _commit() -> str | None:
    """The commit of the working tree, where git knows one."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None
