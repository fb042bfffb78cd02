"""Learned rounding of many weights at once: where it starts, its derivatives against autograd, what it decides."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from quest.learning.adaround import LearnedRounding
from quest.quantization.granularity import Granularity, PerAxis, PerGroup
from quest.quantization.grid import Grid
from quest.quantization.layers import QuantizedLayer, Switches
from quest.quantization.quantizers import Split, WeightQuantizer
from quest.quantization.roles import Role
from quest.quantization.rounding import Fixed

LAMBDA, BETA = 0.3, 3.5
GRID = Grid(3)


def layer(module: nn.Conv2d | nn.Linear, granularity: Granularity, split: int | None = None) -> QuantizedLayer:
    weight = module.weight.detach()

    def quantizer(part: Tensor) -> WeightQuantizer:
        return WeightQuantizer(part, GRID, granularity, "mse")  # clips some weights

    weights = (
        quantizer(weight) if split is None else Split(quantizer(weight[:, :split]), quantizer(weight[:, split:]), split)
    )
    return QuantizedLayer(module.requires_grad_(False), Role.CONVOLUTION, weights, nn.Identity(), Switches())


@pytest.fixture
def layers() -> list[QuantizedLayer]:
    """Layers of every kind: a scale for each channel or each group of inputs, whole or in two halves."""
    torch.manual_seed(0)
    return [
        layer(nn.Conv2d(3, 4, 3, padding=1), PerAxis(0)),
        layer(nn.Conv2d(4, 6, 3, padding=1), PerAxis(0), split=1),
        layer(nn.Linear(6, 8), PerGroup(2)),
    ]


def output(layers: list[QuantizedLayer], x: Tensor) -> Tensor:
    return layers[2](layers[1](layers[0](x)).mean((2, 3)))


def by_autograd(layers: list[QuantizedLayer], x: Tensor, v: list[Tensor]) -> Tensor:
    """The loss and the penalty as in the paper, on a soft rounding of every part of every weight."""
    penalty, used = x.new_zeros(()), iter(v)
    for each in layers:
        parts = []
        for quantizer, weight in each.weight_parts():
            h = (torch.sigmoid(next(used)) * 1.2 - 0.1).clamp(0, 1)
            penalty = penalty + (1 - (2 * h - 1).abs().pow(BETA)).sum()
            floor = quantizer.ratio(weight).floor()
            code = torch.clamp(floor + quantizer.granularity.view(h) + quantizer.zero_point, GRID.low, GRID.high)
            parts.append(((code - quantizer.zero_point) * quantizer.scale).view_as(weight))
        each.use(torch.cat(parts, dim=1))
    return output(layers, x).square().sum() + LAMBDA * penalty


def test_derivatives_are_those_of_the_paper(layers: list[QuantizedLayer]) -> None:
    rounding = LearnedRounding(layers)
    noise = torch.randn(len(rounding.v), generator=torch.Generator().manual_seed(1))
    rounding.v.data += noise
    x = torch.randn(5, 3, 6, 6)
    weights = rounding.v.detach().split([each.weight.numel() for each in layers])
    v = [
        part.contiguous().requires_grad_()
        for each, whole in zip(layers, weights, strict=True)
        for part in whole.view_as(each.weight).split([part.shape[1] for _, part in each.weight_parts()], dim=1)
    ]
    expected = torch.autograd.grad(by_autograd(layers, x, v), v)
    expected = [torch.cat(expected[a:b], dim=1).flatten() for a, b in ((0, 1), (1, 3), (3, 4))]

    rounding.update(torch.optim.SGD([rounding.v], lr=0.0))  # the layers' weights follow the noise
    with rounding.applied():
        loss = output(layers, x).square().sum()
        rounding.backward(loss, torch.tensor(LAMBDA), torch.tensor(BETA))
    assert rounding.v.grad is not None
    torch.testing.assert_close(rounding.v.grad, torch.cat(expected), rtol=1e-4, atol=1e-4)


def test_nothing_changes_at_first(layers: list[QuantizedLayer]) -> None:
    """Inside their range weights start as they are, and deciding at once is rounding to nearest."""
    nearest = [quantizer.codes(weight) for each in layers for quantizer, weight in each.weight_parts()]
    rounding = LearnedRounding(layers)
    with rounding.applied():
        for each in layers:
            codes = [(q.ratio(w) + q.zero_point).view_as(w) for q, w in each.weight_parts()]
            inside = (torch.cat(codes, dim=1) - GRID.high / 2).abs() <= GRID.high / 2
            assert inside.float().mean() > 0.5
            torch.testing.assert_close(each.quantized_weight()[inside], each.weight[inside], atol=1e-5, rtol=0)
    assert all(each._frozen is None for each in layers)
    rounding.decide()
    decided = [quantizer.codes(weight) for each in layers for quantizer, weight in each.weight_parts()]
    assert all(torch.equal(*pair) for pair in zip(nearest, decided, strict=True))


def test_what_is_learned_is_what_is_decided(layers: list[QuantizedLayer]) -> None:
    """Up where h is above one half, each part in the layout of its scales."""
    rounding = LearnedRounding(layers)
    wanted = torch.rand(len(rounding.v), generator=torch.Generator().manual_seed(2)) < 0.5
    rounding.v.data = torch.where(wanted, 1.0, -1.0)
    rounding.decide()
    for each, up in zip(layers, wanted.split([each.weight.numel() for each in layers]), strict=True):
        expected = up.view_as(each.weight)
        found = []
        for quantizer, weight in each.weight_parts():
            assert isinstance(quantizer.rounding, Fixed)
            assert quantizer.rounding.up.shape == quantizer.ratio(weight).shape
            found.append(quantizer.rounding.up.view_as(weight))
        assert torch.equal(torch.cat(found, dim=1), expected)
