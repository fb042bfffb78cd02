"""What there is to show: the cells of each dataset, their numbers, and where their images lie. Never imports torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from quest import paths
from quest.artifacts import ArtifactError, JsonArtifact, listed, load_json
from quest.config.reading import unknown
from quest.report import costs, tables
from quest.report.tables import Row

METRICS, PREVIEWS = Path("results/metrics"), Path("results/previews")
_RECORDS, _BENCHMARKS = Path("results/finetune/records.json"), Path("benchmarks/finetune")


class Cell(NamedTuple):
    """A method at a bit-width. rows: its metrics by seed. summary: their means. settings: those of its first seed, by
    dotted keys. previews: files of its images by seed, where they are here. samples: sha256 of what those should be of.
    seconds: that quantizing it took, where known."""

    name: str
    rows: dict[int, Row]
    summary: Row
    settings: dict[str, Any]
    previews: dict[int, Path]
    samples: dict[int, str]
    seconds: float | None


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
    seconds = _seconds(root)
    found = []
    for dataset in sorted(datasets):
        mine = {file: artifact for file, artifact in chosen.items() if file.parent.name == dataset}
        for alike, apart in _measured_alike(dataset, mine):
            found.append(Group(dataset, _cells(dataset, alike, seconds, root), apart))
    return found


def _require_known(wanted: Iterable[str], known: set[str]) -> None:
    for name in wanted:
        if name not in known:
            raise ValueError(unknown(name, sorted(known)))


def _measured_alike(dataset: str, artifacts: Mapping[Path, JsonArtifact]) -> list[tuple[dict[Path, JsonArtifact], str]]:
    """``artifacts`` in groups of one protocol each, the largest first, and what tells each other from that."""
    alike: list[dict[Path, JsonArtifact]] = []
    for file, artifact in artifacts.items():
        for group in alike:
            if not _difference(dataset, group, {file: artifact}):
                group[file] = artifact
                break
        else:
            alike.append({file: artifact})
    alike.sort(key=len, reverse=True)
    return [(group, _difference(dataset, alike[0], group)) for group in alike]


def _difference(dataset: str, first: Mapping[Path, JsonArtifact], other: Mapping[Path, JsonArtifact]) -> str:
    """What keeps two groups from standing in one table; "" where nothing does."""
    try:
        tables.require_alike(dataset, dict([next(iter(first.items())), next(iter(other.items()))]))
    except ValueError as error:
        return str(error).partition(";")[0]
    return ""


def _cells(
    dataset: str, artifacts: Mapping[Path, JsonArtifact], seconds: Mapping[str, float], root: Path
) -> list[Cell]:
    rows: dict[str, dict[int, JsonArtifact]] = {}
    for artifact in sorted(artifacts.values(), key=lambda each: tables.order(each.content)):
        rows.setdefault(_name(artifact.content), {})[artifact.content["seed"]] = artifact
    return [_cell(dataset, name, by_seed, seconds, root) for name, by_seed in rows.items()]


def _cell(
    dataset: str, name: str, artifacts: Mapping[int, JsonArtifact], seconds: Mapping[str, float], root: Path
) -> Cell:
    rows = {seed: artifact.content for seed, artifact in artifacts.items()}
    first = next(iter(artifacts.values()))
    place = {"dataset": dataset, "method": first.content["method"], "bits": first.content["bits"]}
    previews = {seed: root / paths.fill(paths.PREVIEW, **place, seed=seed) for seed in rows}
    times = [seconds[f"{dataset}/{name}-seed{seed}"] for seed in rows if f"{dataset}/{name}-seed{seed}" in seconds]
    return Cell(
        name,
        rows,
        tables.summarize(list(rows.values()))[0],
        dict(_flat(first.manifest.settings)),
        {seed: file for seed, file in previews.items() if file.is_file()},
        {seed: artifact.manifest.inputs.get("samples.0", "") for seed, artifact in artifacts.items()},
        sum(times) / len(times) if times else None,
    )


def _name(row: Row) -> str:
    return f"{row['method']}-{row['bits']}"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _seconds(root: Path) -> dict[str, float]:
    """Wall-clock seconds of quantizing by ``<dataset>/<cell>``: of the last run here, else as recorded when it ran."""
    found = {}
    records = root / _RECORDS
    for line in records.read_text(encoding="utf-8").splitlines() if records.is_file() else ():
        try:
            entry = json.loads(line)
            record = entry["record"]
            file = Path(entry["file"])
            found[f"{file.parent.name}/{file.stem}"] = record["endtime"] - record["starttime"]
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{records}: not Snakemake's records; `dvc pull {_RECORDS.parent}` restores it"
            ) from error
    for file in sorted((root / _BENCHMARKS).rglob("*.tsv")):
        found[f"{file.parent.name}/{file.stem}"] = costs.cost(file).seconds
    return found
