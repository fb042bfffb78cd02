"""Convolutions that are not trained: the same numbers as torch's, without keeping their input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quest.quantization.layers import operation

CASES = [
    (nn.Conv2d(4, 6, 3, stride=2, padding=1), (5, 4, 9, 9)),
    (nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2, bias=False), (5, 4, 8, 8)),
    (nn.Conv2d(4, 6, 1), (5, 4, 8, 8)),
    (nn.Conv2d(4, 6, 3, padding="same"), (5, 4, 8, 8)),
    (nn.Conv1d(4, 6, 3, padding=1), (5, 4, 9)),
]


def saved_by(layer: nn.Module, x: Tensor) -> tuple[Tensor, list[tuple[int, ...]]]:
    """The output, and the shapes of what is kept for the backward pass."""
    shapes: list[tuple[int, ...]] = []

    def keep(tensor: Tensor) -> Tensor:
        shapes.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        return operation(layer)(x, layer.weight, layer.bias), shapes  # type: ignore[arg-type]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("layer", "shape"), [*CASES, (nn.Conv2d(64, 128, 3, padding=1), (8, 64, 8, 8))])
def test_gradients_of_a_fixed_convolution_are_torchs_to_the_last_bit(
    layer: Any, shape: tuple[int, ...], channels_last: bool
) -> None:
    layer = layer.requires_grad_(False)
    torch.manual_seed(0)
    x = torch.randn(shape)
    if channels_last:  # as the output of attention on an image lies in memory
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    x.requires_grad_(True)
    expected, found = layer(x), operation(layer)(x, layer.weight, layer.bias)
    assert torch.equal(found, expected)
    gradient = torch.randn_like(found)
    assert torch.equal(*(torch.autograd.grad(y, x, gradient)[0] for y in (found, expected)))


def test_it_keeps_its_weight_alone() -> None:
    layer, x = nn.Conv2d(4, 6, 3).requires_grad_(False), torch.randn(5, 4, 8, 8, requires_grad=True)
    assert saved_by(layer, x)[1] == [(6, 4, 3, 3)]
    assert not saved_by(layer, x.detach())[1], "nothing to differentiate"


@pytest.mark.parametrize("trained", ["weight", "bias"])
def test_one_that_is_trained_has_all_gradients(trained: str) -> None:
    layer, x = nn.Conv2d(4, 6, 3).requires_grad_(False), torch.randn(5, 4, 8, 8, requires_grad=True)
    parameter = layer.get_parameter(trained).requires_grad_(True)
    output, shapes = saved_by(layer, x)
    assert (5, 4, 8, 8) in shapes
    found = torch.autograd.grad(output.square().sum(), (x, parameter))
    expected = torch.autograd.grad(layer(x).square().sum(), (x, parameter))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_it_can_be_differentiated_twice() -> None:
    """As the study of the loss's expansion does."""
    layer = nn.Conv2d(2, 3, 3, padding=1).double().requires_grad_(False)
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: operation(layer)(x, layer.weight, layer.bias).sin(), (x,))
