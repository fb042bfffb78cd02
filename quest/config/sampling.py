"""How images are drawn, and what each is drawn for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from quest.config.values import NonNegative, Positive, Settings


class SamplerSettings(Settings):
    """How images are drawn: DDIM (Song et al. 2021, eq. 12) or PLMS (Liu et al. 2022) on the model's noise schedule."""

    kind: Literal["ddim", "plms"] = Field(default="ddim", description="plms is deterministic, on the uniform grid")
    steps: Annotated[int, Field(gt=0, le=10_000)] = Field(default=20, description="sampling steps")
    eta: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="0 is deterministic DDIM, 1 is as noisy as DDPM"
    )
    spacing: Literal["uniform", "quadratic"] = Field(
        default="uniform", description="of the timesteps; quadratic has more of them where there is little noise"
    )
    timesteps: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None, description="the timesteps themselves, noisiest first, instead of a spacing"
    )
    guidance_scale: NonNegative = Field(
        default=1.0, description="classifier-free guidance of conditional models; 1 is without"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> SamplerSettings:
        if self.kind == "plms" and (self.eta or self.spacing != "uniform" or self.timesteps is not None):
            raise ValueError("kind is plms, which has eta 0, uniform spacing and no timesteps of its own")
        if self.kind == "plms" and self.steps == 1:
            raise ValueError("kind is plms and steps is 1; PLMS takes at least 2, which it starts from")
        if self.timesteps is not None:
            if len(self.timesteps) != self.steps:
                raise ValueError(f"{len(self.timesteps)} timesteps are given, but steps is {self.steps}")
            if sorted(self.timesteps, reverse=True) != list(self.timesteps):
                raise ValueError("timesteps must come noisiest first, from large to small")
        return self


class ConditionSettings(Settings):
    """What each image is drawn for: exactly one of the two."""

    classes: Positive | None = Field(default=None, description="classes in turn: image i is of class i mod classes")
    prompts: Path | None = Field(default=None, description="text file of prompts in turn, one a line")

    @model_validator(mode="after")
    def _one(self) -> ConditionSettings:
        if (self.classes is None) == (self.prompts is None):
            raise ValueError("expected either classes or prompts")
        return self
