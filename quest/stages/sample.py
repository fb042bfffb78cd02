"""Draw one shard of images; image i is the same whatever the shards, batches and devices."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

import click
import torch

from quest import artifacts
from quest.config.dataset import DatasetSettings
from quest.config.evaluation import FAKE, Backend
from quest.config.values import FULL_PRECISION, UNQUANTIZED
from quest.deploy import backends, checkpoints
from quest.diffusion import denoiser as denoisers
from quest.diffusion.sampling import draw, shard_indices
from quest.stages import DEVICE, MODEL, OUTPUT, PROTOCOL, SEED, file

SECTIONS = (
    "sampler",
    "condition",
    "evaluation.images",
    "evaluation.shards",
    "evaluation.batch_size",
    "evaluation.backend",
)
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
    click.Option(
        ["--backend"],
        type=click.Choice(get_args(Backend)),
        help="What multiplies in a low-bit checkpoint; evaluation.backend unless given.",
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
    backend: Backend | None = None,
) -> None:
    """Write an artifact of kind "samples": images (n, channels, H, W) uint8.

    Raises ValueError for a checkpoint that the backend cannot compute, or a backend without a checkpoint.
    """
    if checkpoint is None and backend not in (None, FAKE):
        raise ValueError(f"--backend {backend}: full precision is not on grids; name a low-bit --checkpoint")
    evaluation = settings.evaluation
    indices = shard_indices(evaluation.images, shard, evaluation.shards)
    denoiser = denoisers.load(model, device)
    inputs = {"model": denoiser.sha256}
    network, method, bits, correction = denoiser.network, FULL_PRECISION, UNQUANTIZED, None
    backend = FAKE if checkpoint is None else backend or evaluation.backend
    said: dict[str, Any] = {}
    with ExitStack() as stack:
        if checkpoint is not None:
            loaded = checkpoints.load(checkpoint, denoiser)
            checkpoints.require_sampler(checkpoint, loaded, settings.sampler)
            method, bits, correction = loaded.method, loaded.network.recipe.bits, loaded.correction
            inputs["checkpoint"] = loaded.sha256
            network, said = stack.enter_context(backends.get(backend).ready(loaded, denoiser))
        images = draw(denoiser, network, settings, seed, indices, device, correction)
    manifest = artifacts.Manifest(
        kind="samples",
        settings={
            "sampler": artifacts.plain(settings.sampler),
            "condition": None if settings.condition is None else artifacts.plain(settings.condition),
            **({} if backend == FAKE else {"backend": backend}),
        },
        seeds={"run": seed},
        inputs=inputs,
        notes={
            "method": method,
            "bits": str(bits),
            "first": indices.start,
            "shard": shard,
            "shards": evaluation.shards,
            **said,
        },
    )
    artifacts.save_tensors(output, {"images": images}, manifest)
