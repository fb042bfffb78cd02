"""TRAQ: its settings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from quest.config.method import MethodSettings
from quest.config.quantizer import multiples_of_few_bits
from quest.config.values import Positive, Rate, Width, completed


class TraqSettings(MethodSettings):
    """TRAQ: everything is finetuned at once, on the quantized network's own trajectories; this project's method."""

    title = "TRAQ (ours)"
    grouping = "blocks"

    rounding: Literal["learned", "nearest"] = Field(
        default="learned", description="rounding of the weights that finetuning starts from"
    )
    sets: Positive = Field(
        default=20, description="learned activation scales: one for each sampling step; divides sampler.steps"
    )
    granularity: dict[Width, Literal["per_tensor", "offsets", "multiples", "per_channel"]] = Field(
        default={"8": "per_tensor", "4": "multiples"},
        description="what shares an activation scale, as quantizer.activation_granularity has it: a tensor at any "
        "bits, so that integers can be multiplied, at 4 with a zero point and a multiple for each channel",
    )
    passes: Annotated[int, Field(ge=0)] = Field(
        default=7_680, description="samples that go forward and back through the network; 0: nothing is trained"
    )
    batch_size: Positive = Field(default=8, description="samples of one optimizer step, of any sampling steps")
    draws: Annotated[int, Field(ge=0)] = Field(
        default=3,
        description="how often the states that are trained on are drawn anew, along trajectories of the network as it "
        "then is; 0: calibration data, which are full precision's",
    )
    trajectories: Positive = Field(default=64, description="of each draw")
    folded: bool = Field(
        default=True, description="move weights onto their codes first, so that a small update crosses none by accident"
    )
    weight_lr: dict[Width, Rate] = Field(
        default={"8": 1e-3, "4": 5e-3},
        description="of weights, times the mean weight scale of their layer, by activation bits, up to 4 and up to 8",
    )
    scale_lr: Rate = Field(default=5e-3, description="of activation scales, times their mean at first")
    bias_lr: Rate = Field(default=5e-4, description="of biases, and of weights and biases of norms")
    cauchy: Annotated[float, Field(ge=0)] = Field(
        default=4.0,
        description="width of the Cauchy loss that errors of samples go through, in medians of a batch, so that a few "
        "states where the network has lost its way do not decide every step; 0: errors count as they are",
    )
    influence: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1.0,
        description="exponent of the weight that a sampling step has in the loss: what an error there does to "
        "the image",
    )

    _few = field_validator("granularity")(multiples_of_few_bits)

    @field_validator("granularity", "weight_lr", mode="before")
    @classmethod
    def _complete(cls, given: Any, info: ValidationInfo) -> Any:
        return completed(given, cls.model_fields[str(info.field_name)].default)
