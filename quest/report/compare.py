"""Cells side by side, or the same cells at two revisions: every metric, its difference, and how sure that is.

Never imports torch.
"""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from quest.artifacts import JsonArtifact, listed, load_json
from quest.report import protocols, tables
from quest.report.nearest import unknown
from quest.report.paired import Difference, Values, difference
from quest.report.tables import MISSING, Column

METRICS = Path("results/metrics")
WORKSPACE = "workspace"
WIDTH, HEADER_WIDTH = 100, 14  # characters
_OF_ONE = "Of one seed there is neither."
_FEW = 3
_CELL = re.compile(r"(?P<cell>.+-w\d+a\d+)-seed\d+")


class Side(NamedTuple):
    """A cell, or a revision of it: its name in the table, and its metrics artifacts by file."""

    label: str
    files: dict[Path, JsonArtifact]


def cells(names: Sequence[str], folder: Path = METRICS, every: bool = False) -> str:
    """A text table: a row a metric, a column a cell, and each one's difference from the first.

    names: metrics files, or ``<dataset>/<method>-<bits>`` for all seeds of a cell that are in ``folder``, or one with
    ``-seed<n>``. Files of one cell count as its seeds; where they were not all measured alike, those count that were
    measured like the first, and the text names the others. every: all metrics instead of those of
    `tables.HEADLINE`.
    Raises ValueError for an unknown name, for fewer than two cells, or for cells that were not measured alike.
    """
    named = _sides(names, folder)
    sides = _alike(named)
    return "\n".join([*_tables(sides, _columns(every)), _seeds(sides), *_left_out(named, sides)])


def cells_json(names: Sequence[str], folder: Path = METRICS) -> dict[str, Any]:
    """The same for programs: {"cells": {label: {metric: mean}}, "differences": {label: {metric: [value, error]}}}."""
    return _plain(_alike(_sides(names, folder)))


def revisions(old: str, new: str, names: Sequence[str], folder: Path = METRICS, every: bool = False) -> str:
    """What changed in the named cells, or in all, between two revisions of this repository, and a count of the rest.

    old, new: what git takes for a commit, or "workspace" for the files that are here. Cells that were measured
    otherwise are named, not compared. Raises ValueError for an unknown name, for revisions without a cell in common,
    and for one that DVC has no metrics of.
    """
    with _at_both(old, new, names, folder) as found:
        changed, apart, same = _sorted_out(found)
        parts = [
            "\n".join([cell, *_tables(sides, _columns(every)), *_left_out(found.common[cell], sides)])
            for cell, sides in changed.items()
        ]
        if changed:
            parts.append(f"A cell ± its standard deviation over seeds, a difference ± its standard error. {_OF_ONE}")
        parts += [f"{cell}: measured otherwise, so not compared: {why}" for cell, why in apart.items()]
        parts += [f"{_cells(len(own))} only at {label}: {_some(own)}" for label, own in found.alone.items() if own]
        parts.append(f"{_cells(len(same))} the same at {old} and {new}, {_cells(len(changed))} changed.")
        return "\n\n".join(parts)


def revisions_json(old: str, new: str, names: Sequence[str], folder: Path = METRICS) -> dict[str, Any]:
    """The same for programs: "changed", cells as `cells_json` has them; "same", a list; "measured_otherwise", why."""
    with _at_both(old, new, names, folder) as found:
        changed, apart, same = _sorted_out(found)
        return {"changed": {cell: _plain(sides) for cell, sides in changed.items()}} | {
            "same": same,
            "measured_otherwise": apart,
        }


class _Found(NamedTuple):
    """Cells at two revisions, those that only one of them has, and the scratch folders by what they hold."""

    common: dict[str, list[Side]]
    alone: dict[str, list[str]]
    scratch: dict[str, Path]


@contextmanager
def _at_both(old: str, new: str, names: Sequence[str], folder: Path) -> Iterator[_Found]:
    with tempfile.TemporaryDirectory(prefix="quest-compare-") as scratch:
        folders = {
            revision: folder if revision == WORKSPACE else _checkout(revision, folder, Path(scratch) / str(place))
            for place, revision in enumerate((old, new))
        }
        first, second = (_cells_of(where, names) for where in (folders[old], folders[new]))
        common = sorted(set(first) & set(second))
        if not common:
            raise ValueError(f"{old} and {new} have no cell in common{' of those named' if names else ''}")
        yield _Found(
            {
                cell: [
                    Side(revision, {file: load_json(file, "metrics") for file in _files(cell, where)})
                    for revision, where in folders.items()
                ]
                for cell in common
            },
            {old: sorted(set(first) - set(second)), new: sorted(set(second) - set(first))},
            {f"{revision}:{folder}": where for revision, where in folders.items() if where != folder},
        )


def _sorted_out(found: _Found) -> tuple[dict[str, list[Side]], dict[str, str], list[str]]:
    """The cells whose numbers changed, those that were measured otherwise with how, and those that are the same."""
    changed: dict[str, list[Side]] = {}
    apart: dict[str, str] = {}
    same: list[str] = []
    for cell, sides in found.common.items():
        numbers = [[_values(side.files.values(), column.key) for column in tables.COLUMNS] for side in sides]
        if all(each == numbers[0] for each in numbers):
            same.append(cell)
            continue
        try:
            changed[cell] = _alike(sides)
        except ValueError as error:
            apart[cell] = str(error)
            for label, folder in found.scratch.items():
                apart[cell] = apart[cell].replace(str(folder), label)
    return changed, apart, same


def _sides(names: Sequence[str], folder: Path) -> list[Side]:
    sides: dict[str, Side] = {}
    for file in dict.fromkeys(file for name in names for file in _files(name, folder)):
        artifact = load_json(file, "metrics")
        row = artifact.content
        label = tables.label(row["method"], row["bits"], tables.backend(row))
        sides.setdefault(label, Side(label, {})).files[file] = artifact
    if len(sides) < 2:
        raise ValueError(f"nothing to compare with {next(iter(sides), 'nothing')}; name two cells or more")
    return list(sides.values())


def _alike(sides: Sequence[Side]) -> list[Side]:
    """``sides`` with the seeds that were measured alike: of the protocols that all sides have, that of the first seed.

    Raises ValueError where there is none."""
    dataset = next(iter(sides[0].files.values())).content["dataset"]
    every = {file: artifact for side in sides for file, artifact in side.files.items()}
    shared = (
        group for group in protocols.groups(dataset, every) if all(group.keys() & side.files.keys() for side in sides)
    )
    chosen = next(shared, every)
    kept = [Side(side.label, {f: each for f, each in side.files.items() if f in chosen}) for side in sides]
    for side in kept:
        tables.require_one_protocol(dataset, side.files)
    tables.require_alike(dataset, dict(next(iter(side.files.items())) for side in kept))
    return kept


def _left_out(named: Sequence[Side], kept: Sequence[Side]) -> list[str]:
    """Which seeds were measured otherwise."""
    lost = {
        side.label: [str(each.content["seed"]) for file, each in side.files.items() if file not in own.files]
        for side, own in zip(named, kept, strict=True)
    }
    texts = [
        f"{label}, seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}" for label, seeds in lost.items() if seeds
    ]
    return [textwrap.fill(f"Measured otherwise, so left out: {'; '.join(texts)}.", WIDTH)] if texts else []


def _columns(every: bool) -> list[Column]:
    by_key = {column.key: column for column in tables.COLUMNS}
    return [*by_key.values()] if every else [by_key[key] for key in tables.HEADLINE]


def _tables(sides: Sequence[Side], columns: Sequence[Column]) -> list[str]:
    """As many cells beside the first as a terminal has room for, the others below."""
    first, *others = sides
    whole = _table(sides, columns)
    if len(others) == 1 or max(map(len, whole.splitlines())) <= WIDTH:
        return [whole]
    half = len(others) // 2
    return [*_tables([first, *others[:half]], columns), "", *_tables([first, *others[half:]], columns)]


def _table(sides: Sequence[Side], columns: Sequence[Column]) -> str:
    first, *others = sides
    lines = []
    for column in columns:
        values = [_values(side.files.values(), column.key) for side in sides]
        if any(values):
            pairs = [(values[0], other) for other in values[1:]]
            changes = [_change(difference(*pair), column) if all(pair) else MISSING for pair in pairs]
            lines.append([column.header, *(_mean(each, column) for each in values), *changes])
    named = [side.label for side in sides] + [f"{side.label} − {first.label}" for side in others]
    headers = ["metric", *(textwrap.fill(name, HEADER_WIDTH) for name in named)]
    return tabulate(lines, headers, disable_numparse=True, colalign=["left", *["right"] * len(named)])


def _seeds(sides: Sequence[Side]) -> str:
    named = "; ".join(
        f"{side.label}: {tables.seeding([artifact.content for artifact in side.files.values()])}" for side in sides
    )
    text = f"{named}. A cell ± its standard deviation over seeds, a difference ± its standard error. {_OF_ONE}"
    return textwrap.fill(text, WIDTH)


def _plain(sides: Sequence[Side]) -> dict[str, Any]:
    numbers = {
        side.label: {column.key: _values(side.files.values(), column.key) for column in tables.COLUMNS}
        for side in sides
    }
    (_, base), *others = numbers.items()
    return {
        "cells": {
            label: {key: statistics.fmean(values.values()) for key, values in own.items() if values}
            for label, own in numbers.items()
        },
        "differences": {
            label: {key: [*difference(base[key], values)] for key, values in own.items() if values and base[key]}
            for label, own in others
        },
    }


def _cells(number: int) -> str:
    return f"{number} cell{'' if number == 1 else 's'}"


def _some(names: Sequence[str]) -> str:
    """The first few."""
    return ", ".join(names[:_FEW]) + (f" and {len(names) - _FEW} more" if len(names) > _FEW else "")


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
        raise ValueError(_unknown(name, _cells_of(folder, []), folder))
    return files


def _cells_of(folder: Path, names: Sequence[str]) -> list[str]:
    """Cells in a folder, as ``<dataset>/<method>-<bits>``; with ``names`` those of them that are there."""
    found = list(dict.fromkeys(_cell_name(file) for file in listed(folder, "*/*.json")))
    if names and (strange := [name for name in names if name not in found]):
        raise ValueError(_unknown(strange[0], found, folder))
    return list(names) or found


def _unknown(name: str, known: Sequence[str], folder: Path) -> str:
    """The sentence for a name that is no cell, with the nearest that are."""
    if not known:
        return f"{folder}: no metrics; `dvc pull` fetches the shared ones, `snakemake` makes them"
    return f"{folder}: {unknown('cell', name, known)}"


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
    known = subprocess.run(["git", "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"], capture_output=True)
    if known.returncode:
        raise ValueError(f"--revision: {revision!r} is no commit of this repository; `git log --oneline` lists them")
    command = [program, "get", ".", str(folder), "--rev", revision, "--out", str(target), "--quiet"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        why = result.stderr.strip().removeprefix("ERROR: ") or "it was not shared, or `dvc fetch` has not brought it"
        raise ValueError(f"{revision}: DVC has no {folder} of it: {why}")
    return target
