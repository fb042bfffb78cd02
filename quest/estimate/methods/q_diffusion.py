"""Q-Diffusion: learned activation scales, unit by unit."""

from __future__ import annotations

from quest.config.dataset import DatasetSettings
from quest.config.methods.q_diffusion import QDiffusionSettings
from quest.estimate import unitwise
from quest.estimate.unitwise import caches as caches
from quest.estimate.unitwise import passed as passed
from quest.estimate.work import Work


def calls(settings: DatasetSettings, own: QDiffusionSettings, _bits: str) -> Work:
    """The learning of scales alone."""
    return unitwise.learned_scales(settings, own, own.sets)
