"""Log a TABLE of the papers to MLflow."""

from __future__ import annotations

from pathlib import Path

import click

from quest.report import tracking
from quest.stages import FILE, OUTPUT

PARAMETERS = (click.Argument(["table"], type=FILE), OUTPUT)


def run(table: Path, output: Path) -> None:
    """Write its run, and a record of it, an artifact of kind "tracking". table: of `quest paper`."""
    tracking.run([], [], output, [table])
