"""Scales of several sets of sampling steps, trained one set at a time through the same tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from quest.learning import optimizers
from quest.learning.turns import in_turns
from quest.quantization.granularity import PerAxis, PerTensor
from quest.quantization.grid import Grid
from quest.quantization.quantizers import ActivationQuantizer, calibrating
from quest.quantization.steps import Step

SETS = 3
ORDER = [0, 2, 2, 1, 0, 2, 1]  # of turns


def calibrated() -> tuple[Step, list[ActivationQuantizer], list[Tensor]]:
    """Two quantizers, one with a scale a channel, and an input for each set."""
    generator = torch.Generator().manual_seed(0)
    step = Step(SETS, SETS)
    sites = [
        ActivationQuantizer((3, 4, 4), Grid(4), granularity, "max", step) for granularity in (PerTensor(), PerAxis(1))
    ]
    inputs = [torch.randn(5, 3, 4, 4, generator=generator) * (1 + index) for index in range(SETS)]
    for index, x in enumerate(inputs):
        step.set(index)
        for site in sites:
            with calibrating(site):
                site(x)
    return step, sites, inputs


def lose(sites: list[ActivationQuantizer], x: Tensor) -> None:
    sum((site(x) - 0.9 * x).square().sum() for site in sites).backward()  # type: ignore[union-attr]


def learned(sites: list[ActivationQuantizer]) -> list[Tensor]:
    return [site.scale.detach().clone() for site in sites]


def by_optimizers_of_their_own() -> list[Tensor]:
    """What turns are held to: the scales of each set as parameters with an Adam of their own."""
    step, sites, inputs = calibrated()
    sets = [[nn.Parameter(site.scale[index].detach().clone()) for site in sites] for index in range(SETS)]
    adams = [optimizers.adam(of_set, 1e-2) for of_set in sets]
    for index in ORDER:
        step.set(index)
        for site, scale in zip(sites, sets[index], strict=True):
            site.scale.data[index] = scale.detach()
            site.requires_grad_(True)
            site.zero_grad()
        lose(sites, inputs[index])
        for site, scale in zip(sites, sets[index], strict=True):
            assert site.scale.grad is not None
            scale.grad = site.scale.grad[index].clone()
        adams[index].step()
    return [torch.stack([of_set[number].detach() for of_set in sets]) for number in range(len(sites))]


def test_each_set_learns_as_if_it_were_alone() -> None:
    step, sites, inputs = calibrated()
    before = learned(sites)
    with in_turns(sites, 1e-2) as turns:
        same = [scale.data_ptr() for scale in turns.scales]
        for index in ORDER:
            step.set(index)
            turns.use(index)
            lose(sites, inputs[index])
            turns.optimizer.step()
            turns.optimizer.zero_grad()
        assert [scale.data_ptr() for scale in turns.scales] == same, "what a GPU recorded stays where it is"
    for found, expected, start in zip(learned(sites), by_optimizers_of_their_own(), before, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
        assert (found != start).flatten(1).any(1).all(), "every set has learned"


def test_another_sets_scales_are_never_used() -> None:
    step, sites, inputs = calibrated()
    with in_turns(sites, 1e-2):
        step.set(1)
        with pytest.raises(ValueError, match="at set 1 of activation scales, and those of 0 are trained"):
            lose(sites, inputs[1])


def test_what_was_learned_is_kept_on_an_error() -> None:
    step, sites, _ = calibrated()
    before = learned(sites)

    def interrupted() -> None:
        with in_turns(sites, 1e-2) as turns:
            step.set(2)
            turns.use(2)
            for scale in turns.scales:
                scale.data.mul_(2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    for found, start in zip(learned(sites), before, strict=True):
        assert torch.equal(found[2], 2 * start[2])
        assert torch.equal(found[:2], start[:2])


def test_a_turn_goes_on_with_what_was_kept() -> None:
    step, sites, inputs = calibrated()
    with in_turns(sites, 1e-2) as turns:
        step.set(0)
        lose(sites, inputs[0])
        turns.optimizer.step()
        turns.keep()
        saved = [[kept.clone() for kept in of_set] for of_set in turns.kept]
        counts = [of_set[len(sites)].item() for of_set in saved]
        assert counts == [1, 0, 0], "steps of Adam"
    step, sites, _ = calibrated()
    with in_turns(sites, 1e-2) as turns:
        for of_set, given in zip(turns.kept, saved, strict=True):
            for kept, value in zip(of_set, given, strict=True):
                kept.copy_(value)
        turns.bring()
        assert [state["step"].item() for state in turns.optimizer.state.values()] == [1, 1]
        for scale, kept in zip(turns.scales, saved[0], strict=False):
            assert torch.equal(scale.detach(), kept)
