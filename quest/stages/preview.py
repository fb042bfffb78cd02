"""The first images of a cell, small enough to be shared with its numbers."""

from __future__ import annotations

from pathlib import Path

import click

from quest.artifacts import Manifest, load_tensors, save_tensors
from quest.stages import FILE, OUTPUT

PARAMETERS = (click.Argument(["samples"], type=FILE), OUTPUT)
IMAGES = 64


def run(samples: Path, output: Path) -> None:
    """Write an artifact of kind "preview": the first IMAGES images of a cell's first shard."""
    shard = load_tensors(samples, "samples")
    if shard.manifest.notes["first"] != 0:
        raise ValueError(f"{samples}: begins with image {shard.manifest.notes['first']}; expected the first shard")
    notes = {name: shard.manifest.notes[name] for name in ("method", "bits", "first")}
    manifest = Manifest(
        kind="preview",
        settings=shard.manifest.settings,
        seeds=shard.manifest.seeds,
        inputs={"samples": shard.manifest.sha256},
        notes=notes,
    )
    save_tensors(output, {"images": shard.tensors["images"][:IMAGES]}, manifest)
