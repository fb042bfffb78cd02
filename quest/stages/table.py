"""One table of DATASET from the METRICS files of its cells: a row a cell, mean and spread over seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from quest.artifacts import Manifest, load_json, save_json
from quest.report import tables
from quest.stages import DATASET, OUTPUT, files

CONVERGENCE = click.Option(
    ["--convergence"],
    callback=lambda _context, _parameter, given: given and json.loads(given),
    help="What is known of the dataset's learned rounding, as JSON (quest.report.convergence).",
)
PARAMETERS = (DATASET, files("metrics"), CONVERGENCE, OUTPUT)


def run(dataset: str, metrics: Sequence[Path], output: Path, convergence: dict[str, Any] | None = None) -> None:
    """Write an artifact of kind "table", as `quest.report.tables.build` makes it."""
    artifacts = {file: load_json(file, "metrics") for file in metrics}
    content = tables.build(dataset, artifacts, convergence)
    inputs = {tables.row_key(artifact.content): artifact.manifest.sha256 for artifact in artifacts.values()}
    save_json(output, content, Manifest(kind="table", inputs=dict(sorted(inputs.items()))))
