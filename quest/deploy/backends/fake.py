"""Fake quantization: the network computes in floating point, on numbers that lie on its grids."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from quest.deploy.backends import Ready
from quest.deploy.checkpoints import Checkpoint
from quest.diffusion.denoiser import Denoiser


@contextmanager
def ready(checkpoint: Checkpoint, denoiser: Denoiser) -> Iterator[Ready]:
    """Weights are quantized once."""
    with checkpoint.network.frozen():
        yield Ready(checkpoint.network, {})
