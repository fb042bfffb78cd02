"""A TABLE for reading, Markdown, and for other programs, CSV: a row a seed."""

from __future__ import annotations

from pathlib import Path

import click

from quest.artifacts import load_json, write_bytes
from quest.report import tables
from quest.stages import FILE, file

PARAMETERS = (click.Argument(["table"], type=FILE), file("csv"), file("markdown"))


def run(table: Path, csv: Path, markdown: Path) -> None:
    """Write the two texts of an artifact of kind "table"."""
    content = load_json(table, "table").content
    write_bytes(csv, tables.to_csv(content["rows"]).encode())
    write_bytes(markdown, tables.to_markdown(content).encode())
