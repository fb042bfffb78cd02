"""Nearest rounding: weights to the nearest code, activation ranges from calibration data, nothing trained.

The floor that every other method is measured from.
"""

from __future__ import annotations

from quest.config.methods.nearest import NearestSettings
from quest.learning.calibration import Calibration
from quest.learning.finetuning import calibrate_activations
from quest.learning.progress import NOT_KEPT, Progress
from quest.methods import Outcome
from quest.quantization.network import QuantizedNetwork


def quantize(
    network: QuantizedNetwork,
    calibration: Calibration,
    settings: NearestSettings,
    seed: int,
    progress: Progress = NOT_KEPT,
) -> Outcome:
    """Calibrate the activations of each group of sampling steps; weights are at their nearest codes already."""
    calibrate_activations(network, calibration)
    return Outcome({})
