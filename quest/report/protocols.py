"""Metrics of one dataset told apart by how they were measured: only those of one protocol may stand in one table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sized
from pathlib import Path
from typing import TypeVar

from quest.artifacts import JsonArtifact
from quest.report import tables

Group = TypeVar("Group", bound=Sized)


def groups(dataset: str, artifacts: Mapping[Path, JsonArtifact]) -> list[dict[Path, JsonArtifact]]:
    """``artifacts`` in groups of one protocol each, in the order in which these come first."""
    found: list[dict[Path, JsonArtifact]] = []
    for file, artifact in artifacts.items():
        for group in found:
            if not difference(dataset, group, {file: artifact}):
                group[file] = artifact
                break
        else:
            found.append({file: artifact})
    return found


def in_order(alike: Iterable[Group], seen: Callable[[Group], int]) -> list[Group]:
    """Groups of one dataset as they are shown: first that with images of most rows, or else the largest.

    seen: of how many of a group's rows images are here.
    """
    return sorted(alike, key=lambda group: (-seen(group), -len(group)))


def difference(dataset: str, first: Mapping[Path, JsonArtifact], other: Mapping[Path, JsonArtifact]) -> str:
    """What keeps two groups from standing in one table; "" where nothing does."""
    try:
        tables.require_alike(dataset, dict([next(iter(first.items())), next(iter(other.items()))]))
    except ValueError as error:
        return str(error).partition(";")[0]
    return ""
