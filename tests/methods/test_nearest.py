"""Nearest rounding: only activation scales are set."""

from __future__ import annotations

from collections.abc import Callable

from network_state import moved, state

from quest import methods
from quest.config.dataset import DatasetSettings
from quest.learning.calibration import Calibration
from quest.methods import nearest
from quest.quantization.network import QuantizedNetwork


def test_only_activation_scales_are_set(
    make_quantized: Callable[..., QuantizedNetwork], calibration: Calibration, settings: DatasetSettings
) -> None:
    network = make_quantized(calibrated=False)
    before = state(network)
    assert nearest.quantize(network, calibration, settings.methods.nearest, 0) == methods.Outcome({})
    changed = moved(before, state(network))
    assert changed
    assert {name.rpartition(".")[2] for name in changed} <= {"scale", "zero_point", "calibrated"}
    assert all(bool(site.calibrated.all()) for site in network.sites().values())
