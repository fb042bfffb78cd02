"""The temporal information block (TFMQ-DM): all that a diffusers U-Net makes of the timestep alone."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn


class TemporalBlock(nn.Module):
    """The time embedding h and its projections g_i into every residual block, as one module on the network's layers.

    names: those of its layers in the network. Raises ValueError for a network that adds more than the timestep to its
    time embedding: its temporal features would be no finite set.
    """

    def __init__(self, network: Any):
        super().__init__()
        if any(getattr(network, part, None) is not None for part in ("class_embedding", "add_embedding")):
            raise ValueError(
                f"the time embedding of this {type(network).__name__} depends on a class or another condition as well; "
                "temporal features that are reconstructed on their own must depend on the timestep alone"
            )
        self.time_embedding = network.time_embedding
        blocks = {
            name: module
            for name, module in network.named_modules()
            if isinstance(module, ResnetBlock2D) and module.time_emb_proj is not None
        }
        self.names = [f"time_embedding.{name}" for name, _ in self.time_embedding.named_modules() if name]
        self.names += [f"{name}.time_emb_proj" for name in blocks]
        self._blocks = list(blocks.values())  # whose other layers are no part of this one

    def forward(self, *args: Any, **named: Any) -> Tensor:
        """(n, Σ channels): the features that go into each residual block, one after another.

        The arguments are those of diffusers' TimestepEmbedding: the sinusoidal embedding (n, channels).
        """
        embedding = self.time_embedding(*args, **named)
        return torch.cat([self._projected(block, embedding) for block in self._blocks], dim=1)

    @staticmethod
    def _projected(block: Any, embedding: Tensor) -> Tensor:
        return block.time_emb_proj(embedding if block.skip_time_act else block.nonlinearity(embedding))
