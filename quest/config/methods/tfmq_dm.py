"""TFMQ-DM: its settings."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from quest.config.method import MethodSettings
from quest.config.values import Positive


class TFMQDMSettings(MethodSettings):
    """TFMQ-DM: temporal features reconstructed on their own, then activation ranges for each sampling step."""

    title = "TFMQ-DM"
    grouping = "temporal"

    sets: Positive = Field(
        default=20, description="activation ranges: one for each sampling step; divides sampler.steps"
    )
    batch_size: Positive = Field(default=16, description="samples that a running range sees at once")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.95, description="share of a running range that each further batch leaves as it was"
    )
