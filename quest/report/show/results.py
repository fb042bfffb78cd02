"""What there is to show: the cells of each dataset, their numbers, and where their images lie. Never imports torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from quest import paths
from quest.artifacts import JsonArtifact, listed, load_json
from quest.config.values import FULL_PRECISION
from quest.report import protocols, tables, times
from quest.report.nearest import unknown
from quest.report.rows import chain
from quest.report.tables import Row
from quest.report.times import Made

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS, PREVIEWS = Path("results/metrics"), Path("results/previews")


class Cell(NamedTuple):
    """A method at a bit-width. rows: its metrics by seed. summary: their means. settings: those of its first seed, by
    dotted keys. previews: files of its images by seed, where they are here. samples: sha256 of what those should be of.
    made: what its chains took, on average, where known."""

    name: str
    rows: dict[int, Row]
    summary: Row
    settings: dict[str, Any]
    previews: dict[int, Path]
    samples: dict[int, str]
    made: Made | None


class Group(NamedTuple):
    """Cells of a dataset that were measured alike. apart: why they do not stand among the dataset's others."""

    dataset: str
    cells: list[Cell]
    apart: str = ""


def groups(wanted: Sequence[str] = (), root: Path = Path()) -> list[Group]:
    """The cells under ``root`` in table order; results of different protocols on one dataset in groups of their own.

    wanted: datasets, or cells like ``digits/quest-w4a4``; all by default, and full precision with any.
    Raises ValueError where nothing is there or a name is unknown, saying what to do; ArtifactError for a damaged file.
    """
    folder = root / METRICS
    datasets = {path.name for path in folder.glob("*") if path.is_dir()}
    files = [file for dataset in sorted(datasets) for file in listed(folder / dataset, "*.json")]
    if not files:
        raise ValueError(
            f"{folder}: no metrics; `dvc pull {METRICS} {PREVIEWS}` brings shared ones, `snakemake` makes them"
        )
    artifacts = {file: load_json(file, "metrics") for file in files}
    names = {file: f"{file.parent.name}/{_name(artifact.content)}" for file, artifact in artifacts.items()}
    _require_known(wanted, datasets | set(names.values()))
    chosen = {
        file: artifact
        for file, artifact in artifacts.items()
        if not wanted
        or file.parent.name in wanted
        or names[file] in wanted
        or (artifact.content["method"] == "fp" and any(each.startswith(f"{file.parent.name}/") for each in wanted))
    }
    made = times.made(root)
    found = []
    for dataset in sorted(datasets):
        mine = {file: artifact for file, artifact in chosen.items() if file.parent.name == dataset}
        for alike, apart in _measured_alike(dataset, mine, root):
            found.append(Group(dataset, _cells(dataset, alike, made, root), apart))
    return found


def quality_against_time(found: Sequence[Group]) -> tuple[dict[str, Figure], list[str]]:
    """A picture (`quest.report.times.chart`) of each dataset with a cell whose time is known, and the datasets without.
    What was measured apart from a dataset's others has a picture of its own, <dataset>.2 and so on."""
    drawn: dict[str, Figure] = {}
    count: dict[str, int] = {}
    for group in found:
        count.setdefault(group.dataset, 0)
        cells = [(cell.summary, cell.made) for cell in group.cells if cell.made is not None]
        if cells:
            count[group.dataset] += 1
            full = next((cell.summary for cell in group.cells if cell.summary["method"] == FULL_PRECISION), None)
            number = count[group.dataset]
            name = group.dataset if number == 1 else f"{group.dataset}.{number}"
            drawn[name] = times.chart(group.dataset, cells, full)
    return drawn, [dataset for dataset, pictures in count.items() if not pictures]


def _require_known(wanted: Iterable[str], known: set[str]) -> None:
    for name in wanted:
        if name not in known:
            raise ValueError(f"{METRICS}: {unknown('dataset or cell', name, sorted(known))}")


def _measured_alike(
    dataset: str, artifacts: Mapping[Path, JsonArtifact], root: Path
) -> list[tuple[dict[Path, JsonArtifact], str]]:
    """``artifacts`` in groups of one protocol each, and what tells each other from the first."""

    def seen(group: Mapping[Path, JsonArtifact]) -> int:
        return sum(_preview(dataset, each.content, root).is_file() for each in group.values())

    alike = protocols.in_order(protocols.groups(dataset, artifacts), seen)
    return [(group, protocols.difference(dataset, alike[0], group)) for group in alike]


def _cells(dataset: str, artifacts: Mapping[Path, JsonArtifact], made: Mapping[str, Made], root: Path) -> list[Cell]:
    rows: dict[str, dict[int, JsonArtifact]] = {}
    for artifact in sorted(artifacts.values(), key=lambda each: tables.order(each.content)):
        rows.setdefault(_name(artifact.content), {})[artifact.content["seed"]] = artifact
    return [_cell(dataset, name, by_seed, made, root) for name, by_seed in rows.items()]


def _cell(dataset: str, name: str, artifacts: Mapping[int, JsonArtifact], made: Mapping[str, Made], root: Path) -> Cell:
    rows = {seed: artifact.content for seed, artifact in artifacts.items()}
    first = next(iter(artifacts.values()))
    previews = {seed: _preview(dataset, row, root) for seed, row in rows.items()}
    chains = dict.fromkeys(f"{dataset}/{name}-seed{chain(row)}" for row in rows.values())
    return Cell(
        name,
        rows,
        tables.summarize(list(rows.values()))[0],
        dict(_flat(first.manifest.settings)),
        {seed: file for seed, file in previews.items() if file.is_file()},
        {seed: artifact.manifest.inputs.get("samples.0", "") for seed, artifact in artifacts.items()},
        times.mean([made[each] for each in chains if each in made]),
    )


def _preview(dataset: str, row: Row, root: Path) -> Path:
    """Where the images of a row lie, if they are here."""
    place = {"dataset": dataset, "method": row["method"], "bits": row["bits"], "seed": row["seed"]}
    return root / paths.fill(paths.PREVIEW, **place)


def _name(row: Row) -> str:
    return f"{row['method']}-{row['bits']}"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
