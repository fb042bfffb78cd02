"""What studies look at: states of few steps that nothing was trained on, and the outputs of layers at each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from quest.config.dataset import DatasetSettings
from quest.studies.subject import Subject, outputs


@pytest.mark.parametrize(("most", "steps"), [(1, [0]), (2, [0, 2]), (3, [0, 2]), (5, [0, 1, 2, 3])])
def test_states_are_spread_over_as_many_steps_as_divide_the_samplers(
    subject: Subject, make_settings: Callable[..., DatasetSettings], most: int, steps: list[int]
):
    subject = replace(subject, settings=make_settings(analysis={"steps": most, "samples": 3}))
    assert subject.states().steps.tolist() == [step for step in steps for _ in range(3)]


def test_states_are_not_those_of_calibration(subject: Subject):
    first, seen = subject.states().x[:3], subject.calibration.x[0]
    assert all(not torch.equal(state, other) for state in first for other in seen)


def test_outputs_are_those_of_the_layers_at_each_step(subject: Subject):
    network, states = subject.quantized(subject.bits, calibrated=False), subject.states()
    with network.quantizing(weights=False, activations=False):
        found = dict(outputs(network, states))
        some = dict(outputs(network, states, ["conv_in"]))
    assert list(found) == [0, 2]
    assert set(found[0]) == set(network.layers())
    assert list(some[2]) == ["conv_in"]
    conv_in: Any = subject.model.network.conv_in
    torch.testing.assert_close(some[2]["conv_in"], conv_in(states.x[3:]))


def test_a_checkpoint_of_other_bits_is_refused(subject: Subject, make_settings: Callable[..., DatasetSettings]):
    other = replace(subject, settings=make_settings(analysis={"bits": "w8a8"}))
    with pytest.raises(ValueError, match=r"a checkpoint of w4a4; analysis\.bits is w8a8"):
        other.checkpoint()
