"""Roundings: what they decide, and the gradients that let finetuning move a weight."""

from __future__ import annotations

import pytest
import torch

from quest.quantization.rounding import Fixed, Nearest, floor_ste, round_ste


@pytest.fixture
def ratio() -> torch.Tensor:
    """W / D, including whole numbers, halves and negatives."""
    torch.manual_seed(0)
    return torch.cat([torch.randn(2000) * 4, torch.arange(-5.0, 6), torch.arange(-5.0, 6) + 0.5])


@pytest.mark.parametrize("function", [round_ste, floor_ste, Nearest(), Fixed(torch.tensor([True, False, True]))])
def test_gradient_passes_straight_through(function) -> None:
    x = torch.tensor([0.3, -1.6, 2.5], requires_grad=True)
    output = function(x)
    output.backward(torch.tensor([1.0, 2.0, 3.0]))
    assert x.grad is not None
    assert x.grad.tolist() == [1, 2, 3]
    assert torch.equal(output, output.round()), "whole numbers exactly"


def test_decided_rounding_goes_up_or_down_as_decided() -> None:
    x = torch.tensor([0.1, 0.9, -0.1, -0.9])
    assert Fixed(torch.tensor([True, True, True, True]))(x).tolist() == [1, 1, 0, 0]
    assert Fixed(torch.tensor([False, False, False, False]))(x).tolist() == [0, 0, -1, -1]
    assert "up" in Fixed(torch.ones(4, dtype=torch.bool)).state_dict()


@pytest.mark.parametrize(("function", "plain"), [(round_ste, torch.round), (floor_ste, torch.floor)])
def test_straight_through_is_the_same_number_with_and_without_gradient(ratio, function, plain) -> None:
    assert torch.equal(function(ratio), plain(ratio))
    assert torch.equal(function(ratio.clone().requires_grad_()).detach(), plain(ratio))
