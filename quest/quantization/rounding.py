"""How a weight goes to its neighbouring integer: to the nearest, or as was decided (`quest.learning.adaround`).

A rounding maps x = W/D to a whole number.
"""

from __future__ import annotations

from torch import Tensor, nn


def round_ste(x: Tensor) -> Tensor:
    """Nearest integer; the gradient passes straight through."""
    return x + (x.round() - x).detach() if x.requires_grad else x.round()  # the same number in one pass


def floor_ste(x: Tensor) -> Tensor:
    """Next integer below; the gradient passes straight through, which lets finetuning move a rounded weight."""
    return x + (x.floor() - x).detach() if x.requires_grad else x.floor()


class Nearest(nn.Module):
    """Round to nearest."""

    def forward(self, x: Tensor) -> Tensor:
        return round_ste(x)


class Fixed(nn.Module):
    """Round each weight up or down as decided before; ``up`` is a bool buffer of the weight's shape."""

    up: Tensor

    def __init__(self, up: Tensor):
        super().__init__()
        self.register_buffer("up", up)

    def forward(self, x: Tensor) -> Tensor:
        return floor_ste(x) + self.up
