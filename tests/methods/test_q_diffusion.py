"""Q-Diffusion: its stages for a seed, its options, and its policy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from network_state import state

from quest.architectures import Places
from quest.config.dataset import DatasetSettings
from quest.config.methods.q_diffusion import QDiffusionSettings
from quest.config.values import Bits
from quest.deploy.start import recipe as make_recipe
from quest.learning import scales
from quest.learning.calibration import Calibration
from quest.learning.finetuning import calibrate_activations
from quest.methods import q_diffusion
from quest.quantization.network import QuantizedNetwork
from quest.quantization.roles import Role

NO_PLACES = Places((), "")  # none of its exceptions is a single layer

Make = Callable[..., QuantizedNetwork]


@pytest.fixture
def own(settings: DatasetSettings) -> QDiffusionSettings:
    """The tiny protocol's."""
    return settings.methods.q_diffusion


def test_deterministic_for_a_seed(make_quantized: Make, calibration: Calibration, own: QDiffusionSettings) -> None:
    results = []
    for global_seed, seed in enumerate((0, 0, 1)):
        torch.manual_seed(global_seed)  # nothing hangs on the global generator
        network = make_quantized(calibrated=False, sets=1)
        running = own.model_copy(update={"running_statistics": True})
        outcome = q_diffusion.quantize(network, calibration, running, seed)
        assert outcome.correction is None
        results.append((outcome.notes, state(network)))
    assert results[0][0] == results[1][0] != results[2][0]
    assert all(torch.equal(results[0][1][name], tensor) for name, tensor in results[1][1].items())


def test_running_statistics_are_an_option(
    monkeypatch: pytest.MonkeyPatch, make_quantized: Make, calibration: Calibration, own: QDiffusionSettings
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(scales, "follow_ranges", lambda *arguments: calls.append(arguments[2]))
    for running in (False, True):
        given = own.model_copy(update={"running_statistics": running, "iterations": 1})
        q_diffusion.quantize(make_quantized(calibrated=False, sets=1), calibration, given, 7)
    assert calls == [7]


def test_paper_makes_no_exception_of_the_edges(
    make_settings: Callable[..., DatasetSettings], make_quantized: Make, calibration: Calibration
) -> None:
    bits = Bits(4, 4)
    recipe = make_recipe(make_settings(), bits, 1, q_diffusion.paper_policy(bits, NO_PLACES))
    for role in Role:
        assert recipe.layer_bits("any", role) == bits
    assert recipe.policy.attention


def test_more_sets_than_recorded_steps(make_quantized: Make, calibration: Calibration, own: QDiffusionSettings) -> None:
    half = Calibration(calibration.x[:2], [0, 2], calibration.sampler)
    with pytest.raises(ValueError, match="use fewer sets than 4"):
        q_diffusion.quantize(make_quantized(sets=4, calibrated=False), half, own, 0)
    calibrate_activations(make_quantized(sets=2, calibrated=False), half)
