"""Q-Diffusion (ICCV 2023): learned rounding of the weights, then learned step sizes of static activation grids.

Both are learned block by block on the full-precision network's own sampling states: the rounding before a method begins
(`quest.learning.reconstruction`), the step sizes here (`quest.learning.scales`). The split of decoder shortcuts is an
option of the quantizer (`split_shortcuts`).
"""

from __future__ import annotations

from quest.architectures import Places
from quest.config.methods.q_diffusion import QDiffusionSettings
from quest.config.values import Bits
from quest.learning.calibration import Calibration
from quest.learning.scales import calibrate_and_learn
from quest.methods import Outcome
from quest.quantization.network import QuantizedNetwork
from quest.quantization.policy import Policy
from quest.quantization.roles import Role


def quantize(network: QuantizedNetwork, calibration: Calibration, settings: QDiffusionSettings, seed: int) -> Outcome:
    """Choose the activation scales, then learn them. Notes: those of `quest.learning.scales.learn_scales`."""
    return Outcome(calibrate_and_learn(network, calibration, settings, seed))


def paper_policy(bits: Bits, places: Places) -> Policy:
    """The paper makes no exception of the first and the last layer."""
    return Policy("paper", overrides=((Role.FIRST, bits), (Role.LAST, bits)))
