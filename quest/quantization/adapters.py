"""Low-rank adapters of quantized weights (QALoRA): added before the quantizer, they end in the integer codes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LowRank(nn.Module):
    """Adds B·A to a weight (out, in, …). a: (rank, in, …) with the layer's kernel, b: (out, rank), zero at first."""

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator):
        super().__init__()
        bound = weight[0].numel() ** -0.5  # Kaiming-uniform with a = √5
        a = torch.rand(rank, *weight.shape[1:], generator=generator) * 2 * bound - bound
        self.a = nn.Parameter(a.to(weight))
        self.b = nn.Parameter(weight.new_zeros(len(weight), rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.b @ self.a.flatten(1)).view_as(weight)
