"""Integer kernels: the network's codes are packed and multiplied as whole numbers.

What is multiplied is what fake quantization stands for: the same codes, scales and sampling steps. Sums differ in the
last bits of a float, and where such a bit decides how an activation is rounded, images differ a little.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from quest import architectures
from quest.deploy import kernels
from quest.deploy.backends import Ready
from quest.deploy.checkpoints import Checkpoint
from quest.deploy.packed.assembly import packed
from quest.diffusion.denoiser import Denoiser
from quest.quantization.network import QuantizedNetwork

log = logging.getLogger(__name__)


@contextmanager
def ready(checkpoint: Checkpoint, denoiser: Denoiser) -> Iterator[Ready]:
    """Raises ValueError for a network that integer kernels cannot compute."""
    timesteps = denoiser.sampler(checkpoint.sampler).timesteps.tolist()
    network = IntegerNetwork(checkpoint.network, timesteps)
    used = Counter(network.kernels.values())
    log.info("integer kernels: %s", kernels.summary(network.kernels).replace("\n", ", "))
    if exact := used[kernels.EXACT]:
        log.warning(
            "%d of %d layers are multiplied in float64, right but slow: no faster kernel computes them here (%s)",
            *(exact, used.total(), network.lacking),
        )
    yield Ready(network, {"kernels": dict(used)})


class IntegerNetwork(nn.Module):
    """A quantized network that multiplies integers, on its device. Called like the one that it was made from, after
    `set_step`.

    timesteps: of its sampling steps. kernels: by layer, its kernel. lacking: why a layer has a slow one.
    Raises ValueError for a network with a layer whose integers cannot be multiplied.
    """

    def __init__(self, quantized: QuantizedNetwork, timesteps: Sequence[int]):
        super().__init__()
        self.network, self._tables = packed(quantized, timesteps, follow=False)
        self.architecture = architectures.of(self.network)
        self.kernels, self.lacking = kernels.multiply(self.network)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.network(*args, **kwargs)

    def set_step(self, step: int) -> None:
        """Say which sampling step (0 is the noisiest) the coming calls are at."""
        self._tables.use(torch.full((1,), step, device=self._tables.rows.device))
