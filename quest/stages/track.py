"""Log every row of TABLES to MLflow; a rerun updates its run instead of adding one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quest.report import tracking
from quest.stages import file, files

PARAMETERS = (
    files("tables"),
    file("figure", "Pictures to attach.", required=False, many=True),
    file("output", "Record of the MLflow runs that were written.", required=False),
)


def run(tables: Sequence[Path], figure: Sequence[Path], output: Path | None) -> None:
    """Write the runs, and a record of them, an artifact of kind "tracking"."""
    tracking.run(tables, figure, output)
