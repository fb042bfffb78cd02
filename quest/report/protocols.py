"""Metrics of one dataset told apart by how they were measured: only those of one protocol may stand in one table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from quest.artifacts import JsonArtifact
from quest.report import tables


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


def difference(dataset: str, first: Mapping[Path, JsonArtifact], other: Mapping[Path, JsonArtifact]) -> str:
    """What keeps two groups from standing in one table; "" where nothing does."""
    try:
        tables.require_alike(dataset, dict([next(iter(first.items())), next(iter(other.items()))]))
    except ValueError as error:
        return str(error).partition(";")[0]
    return ""
