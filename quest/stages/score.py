"""The numbers of a METRICS file alone, as plain JSON for `dvc metrics`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from quest.artifacts import load_json, write_bytes
from quest.stages import FILE, OUTPUT

PARAMETERS = (click.Argument(["metrics"], type=FILE), OUTPUT)


def run(metrics: Path, output: Path) -> None:
    """Write a flat JSON object of numbers, without a manifest."""
    content = load_json(metrics, "metrics").content
    numbers = {name: value for name, value in content.items() if type(value) in (int, float)}
    write_bytes(output, json.dumps(numbers, indent=1, sort_keys=True).encode() + b"\n")
