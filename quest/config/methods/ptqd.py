"""PTQD: its settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from quest.config.learning import ScaleLearningSettings
from quest.config.method import MethodSettings
from quest.config.values import Positive


class PtqdSettings(ScaleLearningSettings, MethodSettings):
    """PTQD: a sampler that corrects for the quantization noise of a Q-Diffusion network; released code."""

    title = "PTQD"
    grouping = "blocks"

    sets: Positive = Field(
        default=1,
        description="groups of sampling steps with activation scales of their own; one: the same at all steps",
    )
    batch_size: Positive = 16
    samples: Positive = Field(default=1_024, description="calibration samples used, spread over all recorded steps")
    trajectories: Positive = Field(
        default=1_024, description="full-precision trajectories that the noise is measured on"
    )
    held_out: Positive = Field(default=64, description="trajectories more, on which the correction is checked")
    direction: Literal["reduced", "original"] = Field(
        default="reduced",
        description="sampler noise in the coefficient of the predicted noise: as reduced (released code), or as it was",
    )
    centred_bias: bool = Field(
        default=False,
        description="take the correlated part out of the bias, which else counts it twice (as the released code does)",
    )
    step_bits: tuple[Annotated[int, Field(ge=2, le=8)], ...] = Field(
        default=(),
        description="lower activation bit-widths than the run's, each taken by those sampling steps whose quantization "
        "noise is then still below the noise in their input (paper, section 3.4); none: the run's at all steps",
    )
