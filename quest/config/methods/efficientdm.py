"""EfficientDM: its settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from quest.config.method import MethodSettings
from quest.config.values import NonNegative, Positive, Rate


class EfficientDMSettings(MethodSettings):
    """EfficientDM: low-rank weight adapters that merge into the integers, trained on the teacher's trajectories."""

    title = "EfficientDM"
    grouping = "blocks"

    sets: Positive = Field(
        default=100, description="learned activation scales: one for each sampling step; divides sampler.steps"
    )
    trajectories: Positive = Field(
        default=160, description="trajectories of the teacher trained on, an optimizer step for each sampling step"
    )
    batch_size: Positive = Field(default=2, description="samples of one trajectory")
    rank: Positive = 32
    base: Literal["int", "fp"] = Field(
        default="int",
        description="what an adapter is added to: the dequantized codes (released code), or the original weight",
    )
    weight_search: Literal["max", "quantizer"] = Field(
        default="max", description="initial range of a weight channel: its extremes, or as quantizer.weight_search says"
    )
    rounding: Literal["nearest", "learned"] = Field(
        default="nearest",
        description="rounding of the weights that adapters start from; learned needs weight_search quantizer, whose "
        "ranges it was learned on",
    )
    adapter_lr_divisor: Rate = Field(
        default=2_500, description="an adapter's learning rate is the mean weight scale of its layer, divided by this"
    )
    weight_scale_lr: Rate = 1e-6
    activation_lr: Rate = Field(default=5e-4, description="of activation scales and zero points (TALSQ)")
    weight_decay: NonNegative = Field(default=0.01, description="of AdamW, on all that is trained")

    @model_validator(mode="after")
    def _rounding_has_its_ranges(self) -> EfficientDMSettings:
        if self.rounding == "learned" and self.weight_search == "max":
            raise ValueError("rounding is learned on the ranges of the quantizer; set weight_search to quantizer too")
        return self
