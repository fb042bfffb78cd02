"""Cells side by side, or the same cells at two revisions: every metric, its difference, and how sure that is.

Never imports torch.
"""

from __future__ import annotations

import math
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate

from quest.artifacts import JsonArtifact, listed, load_json
from quest.config.reading import unknown
from quest.report import tables
from quest.report.tables import MISSING, Column

METRICS = Path("results/metrics")
WORKSPACE = "workspace"
_CELL = re.compile(r"(?P<cell>.+-w\d+a\d+)-seed\d+")

Values = Mapping[int, float]
"""A metric's value on each seed."""


class Difference(NamedTuple):
    """Second minus first, and its standard error, None where it cannot be estimated."""

    value: float
    error: float | None


def cells(names: Sequence[str], folder: Path = METRICS) -> str:
    """A text table: a row a metric, a column a cell, and each one's difference from the first.

    names: metrics files, or ``<dataset>/<method>-<bits>`` for all seeds of a cell that are in ``folder``, or one with
    ``-seed<n>``. Files of one cell count as its seeds. Raises ValueError for an unknown name, for fewer than two
    cells, or for cells that were not measured alike.
    """
    runs: dict[str, dict[Path, JsonArtifact]] = {}
    for file in dict.fromkeys(file for name in names for file in _files(name, folder)):
        artifact = load_json(file, "metrics")
        runs.setdefault(tables.label(artifact.content["method"], artifact.content["bits"]), {})[file] = artifact
    if len(runs) < 2:
        raise ValueError(f"nothing to compare with {next(iter(runs), 'nothing')}; name two cells or more")
    return _table(runs)


def revisions(old: str, new: str, names: Sequence[str], folder: Path = METRICS) -> str:
    """The same for each of the named cells, or all that both have, at two revisions of this repository.

    old, new: what git takes for a commit, or "workspace" for the files that are here. Raises ValueError as `cells`
    does, and for a revision that DVC has no metrics of.
    """
    with tempfile.TemporaryDirectory(prefix="quest-compare-") as scratch:
        folders = {
            revision: folder if revision == WORKSPACE else _checkout(revision, folder, Path(scratch) / str(place))
            for place, revision in enumerate((old, new))
        }
        chosen = [_cells_of(where, names) for where in folders.values()]
        common = sorted(set(chosen[0]) & set(chosen[-1]))
        if not common:
            raise ValueError(f"{old} and {new} have no cell in common{' of those named' if names else ''}")
        texts = []
        for cell in common:
            runs = {
                revision: {file: load_json(file, "metrics") for file in _files(cell, where)}
                for revision, where in folders.items()
            }
            texts.append(f"{cell}\n{_table(runs)}")
        return "\n\n".join(texts)


def difference(first: Values, second: Values) -> Difference:
    """Second minus first, in the mean over seeds.

    On the same seeds, which share their noise, the error is that of the mean of the differences of each seed; on
    others, that of the difference of two independent means. Under two seeds there is none.
    """
    value = statistics.fmean(second.values()) - statistics.fmean(first.values())
    if min(len(first), len(second)) < 2:
        return Difference(value, None)
    if set(first) == set(second):
        return Difference(value, statistics.stdev(second[s] - first[s] for s in first) / math.sqrt(len(first)))
    variances = [statistics.variance(values.values()) / len(values) for values in (first, second)]
    return Difference(value, math.sqrt(sum(variances)))


def _table(runs: Mapping[str, Mapping[Path, JsonArtifact]]) -> str:
    everything = {file: artifact for files in runs.values() for file, artifact in files.items()}
    dataset = next(iter(everything.values())).content["dataset"]
    for files in runs.values():
        tables.require_one_protocol(dataset, files)
    firsts = dict(next(iter(files.items())) for files in runs.values())
    tables.require_alike(dataset, firsts)

    labels = list(runs)
    headers = ["metric", *labels, *(f"{label} − {labels[0]}" for label in labels[1:])]
    lines = []
    for column in tables.COLUMNS:
        values = [_values(files.values(), column.key) for files in runs.values()]
        if not any(values):
            continue
        pairs = [(values[0], other) for other in values[1:]]
        changes = [_change(difference(*pair), column) if all(pair) else MISSING for pair in pairs]
        lines.append([column.header, *(_mean(each, column) for each in values), *changes])
    named = "; ".join(
        f"{label}: {tables.seeding([artifact.content for artifact in files.values()])}" for label, files in runs.items()
    )
    table = tabulate(lines, headers, disable_numparse=True, colalign=["left", *["right"] * (len(headers) - 1)])
    return (
        f"{table}\n{named}. A cell ± its standard deviation over seeds, a difference ± its standard error; "
        "of a single seed there is neither."
    )


def _values(artifacts: Iterable[JsonArtifact], key: str) -> dict[int, float]:
    """A metric by seed; empty unless every seed has it."""
    found = {artifact.content["seed"]: artifact.content.get(key) for artifact in artifacts}
    return {} if None in found.values() else found


def _mean(values: Values, column: Column) -> str:
    if not values:
        return MISSING
    spread = statistics.stdev(values.values()) if len(values) > 1 else None
    return _written(statistics.fmean(values.values()), spread, column)


def _change(change: Difference, column: Column) -> str:
    return _written(change.value, change.error, column, sign="+")


def _written(value: float, error: float | None, column: Column, sign: str = "") -> str:
    text = f"{value * column.scale:{sign},.{column.digits}f}"
    return text if error is None else f"{text} ± {error * column.scale:,.{column.digits}f}"


def _files(name: str, folder: Path) -> list[Path]:
    """The metrics files of a name. Raises ValueError, naming what is there, if there is none."""
    if name.endswith(".json"):
        return [Path(name)]
    exact = folder / f"{name}.json"
    files = [exact] if exact.exists() else sorted(folder.glob(f"{_escaped(name)}-seed*.json"))
    files = [file for file in files if file == exact or _cell_name(file) == name]
    if not files:
        known = _cells_of(folder, [])
        raise ValueError(f"{folder}: {unknown(name, known) if known else 'no metrics; `snakemake` makes them'}")
    return files


def _cells_of(folder: Path, names: Sequence[str]) -> list[str]:
    """Cells in a folder, as ``<dataset>/<method>-<bits>``; with ``names`` those of them that are there."""
    found = list(dict.fromkeys(_cell_name(file) for file in listed(folder, "*/*.json")))
    if names and (strange := [name for name in names if name not in found]):
        raise ValueError(f"{folder}: {unknown(strange[0], found)}")
    return list(names) or found


def _cell_name(file: Path) -> str:
    match = _CELL.fullmatch(file.stem)
    return f"{file.parent.name}/{match['cell'] if match else file.stem}"


def _escaped(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _checkout(revision: str, folder: Path, target: Path) -> Path:
    """The metrics of a revision, as DVC keeps them, in a folder of its own."""
    program = shutil.which("dvc", path=str(Path(sys.executable).parent)) or shutil.which("dvc")
    if program is None:
        raise ValueError("comparing revisions needs the command dvc; install it, or compare files")
    command = [program, "get", ".", str(folder), "--rev", revision, "--out", str(target), "--quiet"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise ValueError(f"{revision}: DVC has no {folder} of it: {result.stderr.strip().removeprefix('ERROR: ')}")
    return target
