"""One seed a sample: image i gets the same noise whatever the batch size, shard, process or device."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

# Seeds of streams that no chain is made from; a chain's own seeds are small. The two are apart, so that a study does
# not look at what settings were chosen on.
HELD_OUT = 1_000_000  # added to the seed of a chain: what its studies look at
TUNING = 2**31  # what settings are chosen on, for all chains


class SampleNoise:
    """Standard normal noise for the samples ``indices`` of a run, drawn on the CPU.

    purpose: names an independent stream ("calibration", "evaluation"), so that no image is drawn twice from the
    same noise in two roles.
    """

    def __init__(self, purpose: str, seed: int, indices: Sequence[int], shape: Sequence[int]):
        self.shape = tuple(shape)
        self._generators = [torch.Generator().manual_seed(_sample_seed(purpose, seed, index)) for index in indices]

    def draw(self, device: torch.device | str = "cpu") -> Tensor:
        """The next noise of every sample, (len(indices), *shape) float32."""
        return torch.stack([torch.randn(self.shape, generator=generator) for generator in self._generators]).to(device)


def _sample_seed(purpose: str, seed: int, index: int) -> int:
    """32 bits, all that torch's CPU generator uses: no two samples of a run share them, whatever its size."""
    stream = hashlib.sha256(f"{purpose}/{seed}".encode()).digest()
    return int.from_bytes(stream[:4], "little") ^ index
