"""EfficientDM: an optimizer step on each state of the teacher's trajectories."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from quest.config.dataset import DatasetSettings
from quest.config.methods.efficientdm import EfficientDMSettings
from quest.estimate import work
from quest.estimate.work import FORWARD, QUANTIZED, Work

if TYPE_CHECKING:
    from quest.estimate.calls import Calls

DISTIL = "distil"
"""A step of EfficientDM on a state of the teacher's trajectory, the teacher's own prediction included."""


def calls(settings: DatasetSettings, own: EfficientDMSettings, _bits: str) -> Work:
    """The error of the prediction is measured before and after."""
    of_set = settings.calibration.steps // own.sets * work.recorded(settings, 16)
    errors = work.calls(FORWARD, of_set, max(1, of_set)) + work.calls(QUANTIZED, of_set, max(1, of_set))
    trajectory = work.sampled(DISTIL, settings, own.batch_size, own.batch_size)
    return work.chosen(settings, own.sets) + work.times(trajectory, own.trajectories) + work.times(errors, 2 * own.sets)


def step(timed: Calls, batch: int) -> float:
    """Seconds of a step."""
    import torch

    from quest.methods import efficientdm

    data = timed.calibration(batch, steps=3)
    own = timed.settings.methods.efficientdm  # type: ignore[attr-defined]
    own = own.model_copy(update={"batch_size": batch, "trajectories": 1})
    student = copy.deepcopy(timed.quantized)
    layers, sites = efficientdm.trained_layers(student), efficientdm.trained_sites(student)
    generator = torch.Generator().manual_seed(0)
    adapters = {name: efficientdm.attach_adapter(layer, own, generator) for name, layer in layers.items()}
    groups = efficientdm.parameter_groups(layers, adapters, sites, own)

    def learn(steps: int) -> None:
        few = replace(data, sampler=timed.sampler(steps))
        efficientdm.distil(student, timed.quantized, few, copy.copy(groups), own, 0)

    with timed.quantized.quantizing(weights=False, activations=False):
        return timed.step(learn)


KINDS: dict[str, Callable[[Any, int], float]] = {DISTIL: step}
