"""How a weight goes to its neighbouring integer: to the nearest, or learned (AdaRound, Nagel et al. 2020).

A rounding maps x = W/D to a whole number or, while it is learned, to floor(x) + h with h in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

GAMMA, ZETA = -0.1, 1.1  # stretch of the sigmoid, so that h reaches 0 and 1 exactly (AdaRound, eq. 23)


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


class AdaRound(nn.Module):
    """Learned rounding: floor(x) + h(V), with h a stretched sigmoid clipped to [0, 1].

    V starts where h(V) is the fractional part, so that nothing changes at first and `hard` equals round-to-nearest.
    """

    def __init__(self, x: Tensor):
        super().__init__()
        fraction = x - x.floor()
        self.v = nn.Parameter(-torch.log((ZETA - GAMMA) / (fraction - GAMMA) - 1))

    def soft(self) -> Tensor:
        """h(V), in [0, 1]."""
        return (torch.sigmoid(self.v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        return floor_ste(x) + self.soft()

    def penalty(self, beta: float) -> Tensor:
        """Sum of 1 - |2h - 1|^beta: zero when every weight has decided (AdaRound, eq. 24)."""
        return (1 - (2 * self.soft() - 1).abs().pow(beta)).sum()

    def hard(self) -> Fixed:
        """The decision: up where h ≥ 1/2."""
        return Fixed(self.v.detach() >= 0)
