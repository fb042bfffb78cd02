"""Q-Diffusion: its settings."""

from __future__ import annotations

from pydantic import Field

from quest.config.learning import ScaleLearningSettings
from quest.config.method import MethodSettings
from quest.config.values import Positive


class QDiffusionSettings(ScaleLearningSettings, MethodSettings):
    """Q-Diffusion: learned rounding, then learned step sizes of static activation grids; released code."""

    title = "Q-Diffusion"
    grouping = "blocks"

    sets: Positive = Field(
        default=1,
        description="groups of sampling steps with activation scales of their own; one: the same at all steps",
    )
