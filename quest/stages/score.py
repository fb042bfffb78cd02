"""The few numbers of a METRICS file that `dvc metrics` shows, as plain JSON."""

from __future__ import annotations

import json
from pathlib import Path

import click

from quest.artifacts import load_json, write_bytes
from quest.stages import FILE, OUTPUT

# As many as a line of a terminal has room for, beside the name of the file.
SHOWN = {"fid": "fid", "psnr": "psnr", "recall": "recall", "weight_mib": "size_mib"}
PARAMETERS = (click.Argument(["metrics"], type=FILE), OUTPUT)


def run(metrics: Path, output: Path) -> None:
    """Write a flat JSON object of numbers to four digits, without a manifest."""
    content = load_json(metrics, "metrics").content
    numbers = {shown: float(f"{content[name]:.4g}") for name, shown in SHOWN.items() if content.get(name) is not None}
    write_bytes(output, json.dumps(numbers, indent=1, sort_keys=True).encode() + b"\n")
