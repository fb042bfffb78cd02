"""Roundings: what AdaRound starts from, what it decides, and the gradients that let finetuning move a weight."""

from __future__ import annotations

import pytest
import torch

from quest.quantization.granularity import PerAxis
from quest.quantization.grid import Grid
from quest.quantization.quantizers import WeightQuantizer
from quest.quantization.rounding import AdaRound, Fixed, Nearest, floor_ste, round_ste


@pytest.fixture
def ratio() -> torch.Tensor:
    """W / D without ties, including whole numbers and negatives."""
    torch.manual_seed(0)
    x = torch.cat([torch.randn(2000) * 4, torch.arange(-5.0, 6)])
    return x[((x - x.floor()) - 0.5).abs() > 1e-4]


def test_hard_rounding_starts_as_nearest(ratio: torch.Tensor) -> None:
    assert torch.equal(AdaRound(ratio).hard()(ratio), ratio.round())


def test_soft_rounding_starts_as_the_weight_itself(ratio: torch.Tensor) -> None:
    rounding = AdaRound(ratio)
    torch.testing.assert_close(rounding(ratio), ratio, atol=1e-5, rtol=0)
    assert rounding.soft().min() >= 0
    assert rounding.soft().max() <= 1


def test_soft_quantizer_reproduces_a_weight_inside_its_range() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 20)
    quantizer = WeightQuantizer(weight, Grid(4), PerAxis(0), "max")
    quantizer.rounding = AdaRound(quantizer.ratio(weight))
    error = (quantizer(weight) - weight).abs()
    assert (error < 1e-5).float().mean() > 0.9, "all but the ends of the range, which the zero point rounds off"
    assert (error <= quantizer.scale).all()


def test_penalty() -> None:
    rounding = AdaRound(torch.tensor([0.5, 0.5, 0.5]))
    assert rounding.penalty(2.0).item() == pytest.approx(3)
    rounding.v.data = torch.tensor([20.0, -20.0, 20.0])
    for beta in (20.0, 2.0):
        assert rounding.penalty(beta).item() == 0
    rounding.v.data = torch.tensor([1.0, -20.0, 20.0])
    h = 1.2 * torch.sigmoid(torch.tensor(1.0)).item() - 0.1
    for beta in (20.0, 2.0):
        assert rounding.penalty(beta).item() == pytest.approx(1 - (2 * h - 1) ** beta, abs=1e-5)


def test_penalty_drives_towards_the_nearer_decision() -> None:
    rounding = AdaRound(torch.tensor([0.7, 0.3]))
    rounding.penalty(2.0).backward()
    assert rounding.v.grad is not None
    assert rounding.v.grad[0] < 0 < rounding.v.grad[1], "descent raises h of 0.7 and lowers that of 0.3"


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
