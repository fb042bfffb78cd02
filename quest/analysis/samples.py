"""Samples on the same seeds, methods by bit-widths (QuEST, Fig. 4 and 7–10), with the closeness of each shown image."""

from __future__ import annotations

from quest import tables
from quest.analysis import Row
from quest.analysis.subject import Subject
from quest.artifacts import load_tensors
from quest.config import FULL_PRECISION
from quest.metrics.distances import psnr

IMAGES = 4  # of each cell


def measure(subject: Subject) -> list[Row]:
    """A row for each cell and shown image; ``_pixels`` holds the image (C, H, W) for the chart.

    Raises ValueError when the shards do not start at the same image of one seed, or full precision is not among them.
    """
    shards = sorted(
        (load_tensors(file, "samples") for file in subject.files["samples"]),
        key=lambda shard: tables.order(shard.manifest.notes),
    )
    starts = {(shard.manifest.seeds["run"], shard.manifest.notes["first"]) for shard in shards}
    if len(starts) > 1:
        raise ValueError(f"a grid needs the same images of every cell; found (seed, first image) {sorted(starts)}")
    if shards[0].manifest.notes["method"] != FULL_PRECISION:
        raise ValueError("a grid needs the samples of full precision; found none among the shards")
    seed, first = starts.pop()
    targets = shards[0].tensors["images"]
    rows = []
    for shard in shards:
        images = shard.tensors["images"][:IMAGES]
        for index, image in enumerate(images):
            mse = ((image.double() - targets[index].double()) / 255).square().mean().item()
            rows.append(
                {
                    "method": shard.manifest.notes["method"],
                    "bits": shard.manifest.notes["bits"],
                    "seed": seed,
                    "image": first + index,
                    "mse": mse,
                    "psnr": psnr(mse),
                    "_pixels": image.numpy(),
                }
            )
    return rows
