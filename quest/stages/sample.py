"""Draw one shard of images; image i is the same whatever the shards, batches and devices."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import click
import torch

from quest import artifacts
from quest.config.dataset import DatasetSettings
from quest.config.values import FULL_PRECISION, UNQUANTIZED
from quest.deploy import checkpoints
from quest.diffusion import denoiser as denoisers
from quest.diffusion.sampling import draw, shard_indices
from quest.stages import DEVICE, MODEL, OUTPUT, PROTOCOL, SEED, file

SECTIONS = ("sampler", "condition", "evaluation.images", "evaluation.shards", "evaluation.batch_size")
PARAMETERS = (
    *PROTOCOL,
    MODEL,
    file("checkpoint", "Low-bit checkpoint; full precision without.", required=False),
    SEED,
    click.Option(
        ["--shard"],
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Which of evaluation.shards parts to draw.",
    ),
    OUTPUT,
    DEVICE,
)


def run(
    dataset: str,
    settings: DatasetSettings,
    model: Path,
    checkpoint: Path | None,
    seed: int,
    shard: int,
    output: Path,
    device: torch.device,
) -> None:
    """Write an artifact of kind "samples": images (n, channels, H, W) uint8."""
    evaluation = settings.evaluation
    indices = shard_indices(evaluation.images, shard, evaluation.shards)
    denoiser = denoisers.load(model, device)
    inputs = {"model": denoiser.sha256}
    network, method, bits, correction = denoiser.network, FULL_PRECISION, UNQUANTIZED, None
    weights = nullcontext()
    if checkpoint is not None:
        loaded = checkpoints.load(checkpoint, denoiser)
        checkpoints.require_sampler(checkpoint, loaded, settings.sampler)
        network, method, bits, correction = loaded.network, loaded.method, loaded.network.recipe.bits, loaded.correction
        inputs["checkpoint"] = loaded.sha256
        weights = loaded.network.frozen()
    with weights:
        images = draw(denoiser, network, settings, seed, indices, device, correction)
    manifest = artifacts.Manifest(
        kind="samples",
        settings={
            "sampler": artifacts.plain(settings.sampler),
            "condition": None if settings.condition is None else artifacts.plain(settings.condition),
        },
        seeds={"run": seed},
        inputs=inputs,
        notes={
            "method": method,
            "bits": str(bits),
            "first": indices.start,
            "shard": shard,
            "shards": evaluation.shards,
        },
    )
    artifacts.save_tensors(output, {"images": images}, manifest)
