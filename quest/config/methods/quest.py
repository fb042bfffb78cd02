"""QuEST: its settings."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from quest.config.learning import CacheSettings
from quest.config.method import MethodSettings
from quest.config.values import Positive, Rate, Width, completed

_RATE = "by activation bits, up to 4 and up to 8; a number is the rate at any"


class QuestSettings(CacheSettings, MethodSettings):
    """QuEST: time-embedding alignment (TLA), then attention-related alignment (CMA); paper section 3.3."""

    title = "QuEST"
    grouping = "blocks"

    rounding: Literal["learned", "nearest"] = Field(
        default="learned", description="rounding of the weights that finetuning starts from"
    )
    stages: tuple[Literal["tla", "cma", "full"], ...] = Field(
        default=("tla", "cma"),
        description="what is finetuned, in this order; full: every layer and activation scale at once, on the schedule "
        "of stage 2",
    )
    passes: Rate = Field(default=1.0, description="multiplies the passes of every stage")
    tla_epochs: Positive = Field(default=200, description="epochs of stage 1")
    tla_samples: Positive = Field(default=8, description="samples of each recorded step in an epoch of stage 1")
    tla_batch_size: Positive = 2
    tla_weight_lr: dict[Width, Rate] = Field(default={"8": 1e-5, "4": 1e-5}, description=_RATE)
    tla_scale_lr: dict[Width, Rate] = Field(default={"8": 1e-5, "4": 1e-5}, description=_RATE)
    cma_epochs: Positive = Field(default=20, description="epochs of stage 2")
    cma_samples: Positive = Field(default=64, description="… of stage 2")
    cma_batch_size: Positive = 4
    cma_weight_lr: dict[Width, Rate] = Field(default={"8": 1e-5, "4": 1e-5}, description=_RATE)
    cma_scale_lr: dict[Width, Rate] = Field(default={"8": 1e-4, "4": 1e-4}, description=_RATE)
    cma_layers: tuple[str, ...] = Field(
        default=("attention_q", "attention_k", "attention_v", "feed_forward"),
        description="roles of the layers whose weights stage 2 trains",
    )
    rotated: bool = Field(
        default=True,
        description="an epoch takes the samples that come next; without, every epoch has the first ones again",
    )
    adapter_rank: Positive | None = Field(
        default=None,
        description="rank of the adapters that stage 2 trains instead of weights (QALoRA), merged when it ends",
    )
    folded: bool = Field(
        default=False,
        description="start from the weights as they are rounded, where a small step changes no code; without, a weight "
        "beside an integer jumps a whole scale under a tiny one (the released code)",
    )
    local_loss: bool = Field(default=True, description="match the outputs of the trained layers")
    global_loss: bool = Field(default=True, description="match the predicted noise (L_G)")

    @field_validator("tla_weight_lr", "tla_scale_lr", "cma_weight_lr", "cma_scale_lr", mode="before")
    @classmethod
    def _complete(cls, given: Any, info: ValidationInfo) -> Any:
        return completed(given, cls.model_fields[str(info.field_name)].default)
