"""AdaRound (Nagel et al. 2020) of all weights that are learned together, as one vector.

Of a weight W with scale D the code is clamp(floor(W/D) + h(v) + z, low, high), where
    h(v) = clamp(sigmoid(v) · (ζ - γ) + γ, 0, 1)                                       (eq. 23)
and what is minimised is the loss of the layers' outputs + λ · Σ (1 - |2h - 1|^β)       (eq. 24)
One vector for all layers, and derivatives that are written out, make a step a few operations whatever the layers are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from quest.quantization.layers import QuantizedLayer
from quest.quantization.rounding import Fixed

GAMMA, ZETA = -0.1, 1.1  # stretch of the sigmoid, so that h reaches 0 and 1 exactly


class LearnedRounding:
    """Learned rounding of the weights of ``layers``.

    v: (weights,) Parameter, one row after another of every layer's weight. It starts where h(v) is the fraction of W/D,
    so that nothing changes at first.
    """

    def __init__(self, layers: Sequence[QuantizedLayer]):
        self._layers = layers
        self._sizes = [layer.weight.numel() for layer in layers]
        places = [_places(layer) for layer in layers]
        ratio, self._scale, low, high = (torch.cat(each) for each in zip(*places, strict=True))
        self._floor = ratio.floor()
        # What h may be so that the code is on the grid: 0 … 1 inside; a code at an end of the grid or beyond stays.
        low, high = low - self._floor, high - self._floor
        self._least, self._most = low.clamp(min=0).minimum(high), high.clamp(max=1).maximum(low)
        self.v = nn.Parameter(torch.log((ratio - self._floor - GAMMA) / (ZETA - ratio + self._floor)))
        self._weights = torch.empty_like(ratio)
        self._pieces = [
            piece.view_as(layer.weight).requires_grad_()
            for piece, layer in zip(self._weights.split(self._sizes), layers, strict=True)
        ]
        self._put()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the layers compute with these weights instead of their own."""
        try:
            for layer, piece in zip(self._layers, self._pieces, strict=True):
                layer.use(piece)
            yield
        finally:
            for layer in self._layers:
                layer.unfreeze()

    def soft(self) -> Tensor:
        """h(v), (weights,) in [0, 1]."""
        return self._stretched(torch.sigmoid(self.v.detach())).clamp(0, 1)

    @torch.no_grad()
    def backward(self, loss: Tensor, weight: Tensor, beta: Tensor) -> None:
        """Set the gradient of ``v`` from a loss of the layers' outputs and the penalty, within `applied`.

        weight, beta: of the penalty, tensors without dimensions.
        """
        to_weights = torch.cat([g.flatten() for g in torch.autograd.grad(loss, self._pieces)])
        sigmoid = torch.sigmoid(self.v)
        stretched = self._stretched(sigmoid)
        sure = stretched.clamp(0, 1).mul_(2).sub_(1)
        to_h = sure.sign() * sure.abs_().pow_(beta - 1).mul_(beta * weight * -2)
        to_h.masked_fill_((stretched < 0) | (stretched > 1), 0)
        moves = (stretched >= self._least) & (stretched <= self._most)
        to_h.add_(to_weights.mul_(self._scale).mul_(moves))
        self.v.grad = torch.ops.aten.sigmoid_backward(to_h, sigmoid).mul_(ZETA - GAMMA)

    @torch.no_grad()
    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """Step, and have the layers compute with the new weights."""
        optimizer.step()
        self._put()

    def decide(self) -> None:
        """Leave each quantizer with the decision that was learned: up where h ≥ 1/2."""
        for layer, up in zip(self._layers, (self.v.detach() >= 0).split(self._sizes), strict=True):
            parts = layer.weight_parts()
            halves = up.view_as(layer.weight).split([weight.shape[1] for _, weight in parts], dim=1)
            for (quantizer, _), half in zip(parts, halves, strict=True):
                quantizer.rounding = Fixed(quantizer.granularity.view(half.contiguous()))

    @torch.no_grad()
    def _put(self) -> None:
        h = self._stretched(torch.sigmoid(self.v)).clamp_(self._least, self._most)
        torch.mul(h.add_(self._floor), self._scale, out=self._weights)

    @staticmethod
    def _stretched(sigmoid: Tensor) -> Tensor:
        return sigmoid * (ZETA - GAMMA) + GAMMA


@torch.no_grad()
def _places(layer: QuantizedLayer) -> tuple[Tensor, ...]:
    """W/D, D, and the first and the last code without the zero point; of each weight of a layer, in one row."""
    found = []
    for quantizer, weight in layer.weight_parts():
        ratio = quantizer.ratio(weight)
        low, high = quantizer.grid.low - quantizer.zero_point, quantizer.grid.high - quantizer.zero_point
        found.append([each.expand_as(ratio).reshape(weight.shape) for each in (ratio, quantizer.scale, low, high)])
    return tuple(torch.cat(each, dim=1).flatten() for each in zip(*found, strict=True))
