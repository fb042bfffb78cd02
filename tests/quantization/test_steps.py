"""Sampling steps and their sets of scales, and that what each step uses is state."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from quest.quantization.network import QuantizedNetwork
from quest.quantization.recipe import Recipe
from quest.quantization.steps import Step


@pytest.mark.parametrize(("sets", "steps"), [(1, 1), (1, 20), (4, 20), (20, 20), (7, 49)])
def test_sets_are_equal_runs_of_steps(sets: int, steps: int) -> None:
    step = Step(sets, steps)
    members = [list(step.steps_of(index)) for index in range(sets)]
    assert [each for of_set in members for each in of_set] == list(range(steps))
    assert {len(each) for each in members} == {steps // sets}
    expected = [index for index, each in enumerate(members) for _ in each]
    assert [step.set_of(each) for each in range(steps)] == expected
    assert step.set_of(torch.arange(steps)).tolist() == expected
    for each in range(steps):
        step.set(each)
        assert step.index == expected[each]


def test_sets_divide_steps() -> None:
    with pytest.raises(ValueError, match="3 sets of activation scales do not divide 20 sampling steps"):
        Step(3, 20)


def test_a_step_is_set_and_inside() -> None:
    step = Step(2, 4)
    with pytest.raises(ValueError, match=r"before set_step\(step\)"):
        _ = step.index
    for outside in (-1, 4):
        with pytest.raises(ValueError, match=f"sampling step {outside}; .* steps 0 to 3"):
            step.set(outside)


def test_widths_act_at_once() -> None:
    step = Step(1, 3)
    step.set(2)
    assert step.width == 0
    step.use([0, 0, 1])
    assert step.width == 1


@pytest.fixture
def two_widths(make_quantized: Callable[..., QuantizedNetwork], make_unet: Callable[..., torch.nn.Module]):
    def make() -> QuantizedNetwork:
        recipe = make_quantized("w4a8", calibrated=False).recipe
        recipe = Recipe(recipe.bits, recipe.quantizer, recipe.sets, recipe.steps, lower=(4,))
        example = torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.long)
        return QuantizedNetwork(make_unet(), recipe, example)

    return make


def test_the_widths_in_use_are_in_the_state_once(two_widths: Callable[[], QuantizedNetwork]) -> None:
    network, other = two_widths(), two_widths()
    network.use([8, 8, 4, 8])
    state = network.state_dict()
    assert [name for name in state if name.endswith("widths")] == ["step.widths"]
    other.load_state_dict(state)
    assert other.used() == [8, 8, 4, 8]
    other.set_step(2)
    assert other.step.width == 1


def test_a_copy_has_a_step_of_its_own(two_widths: Callable[[], QuantizedNetwork]) -> None:
    network = two_widths()
    twin = copy.deepcopy(network)
    twin.use([4, 4, 4, 4])
    twin.set_step(3)
    network.set_step(0)
    name = "conv_out.input_quantizer"
    for each, width in ((network, 0), (twin, 1)):
        widths = each.network.get_submodule(name)
        assert widths.used is widths[width]
    assert (network.used(), twin.used()) == ([8] * 4, [4] * 4)
