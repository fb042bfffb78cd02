"""What `quest quantize` does with a model of one's own unless it is told otherwise.

Learning is the recipe that the embedded models were tuned with, minutes where the papers' takes hours: a few steps at
higher rates. What a budget cuts, and down to where, stands here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from quest.config.learning import CalibrationSettings, ReconstructionSettings
from quest.config.methods import METHODS, MethodsSettings, python_name
from quest.config.quantizer import QuantizerSettings
from quest.config.reading import merged, unknown, validate
from quest.config.values import NonNegative, Positive, Rate, Settings, Several

_SCALES = {"iterations": 500, "lr": 4e-4, "samples": 1_280}
_FEW_PASSES = {"8": 1e-5, "4": 3e-5}  # rates of QuEST
_METHODS: dict[str, Any] = {
    "nearest": {"sets": 5},
    "q_diffusion": _SCALES,
    "ptqd": _SCALES | {"batch_size": 32, "trajectories": 128, "held_out": 32},
    "efficientdm": {"trajectories": 48, "batch_size": 8, "adapter_lr_divisor": 50, "activation_lr": 5e-5},
    "quest": {
        **{"tla_epochs": 4, "tla_samples": 16, "tla_batch_size": 4, "cma_epochs": 5, "cma_samples": 64},
        **{"tla_weight_lr": _FEW_PASSES, "tla_scale_lr": _FEW_PASSES, "cma_weight_lr": _FEW_PASSES},
        "cma_scale_lr": {"8": 1e-4, "4": 3e-4},
    },
}
_LEAST = {
    **{"images": 4, "samples_per_step": 8, "iterations": 50, "samples": 64, "trajectories": 8, "held_out": 4},
    "passes": 240,
    **{"epochs": 1, "tla_epochs": 1, "tla_samples": 4, "cma_epochs": 1, "cma_samples": 8},
}


class OwnSettings(Settings):
    """Defaults of `quest quantize` and `quest.convert`, which a file given by `--settings` changes."""

    bits: str = Field(default="w8a8", description="of weights and activations; 8 bits are hardly ever seen")
    method: str = Field(default="quest", description="any method, by its name")
    steps: Positive = Field(
        default=50, description="sampling steps, or the number nearest to it that divides the model's timesteps"
    )
    eta: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="0 is deterministic DDIM, 1 as noisy as DDPM"
    )
    size: Positive | None = Field(
        default=None,
        description="pixels of a side, of a pipeline of texts that draws images of any size; without, its own default",
    )
    guidance: dict[Literal["text", "class"], NonNegative] = Field(
        default={"text": 7.5, "class": 1.5}, description="classifier-free guidance by what a model is told"
    )
    calibration: CalibrationSettings = CalibrationSettings(samples_per_step=64)
    quantizer: QuantizerSettings = QuantizerSettings()
    reconstruction: ReconstructionSettings = ReconstructionSettings(iterations=1_000, lr=5e-2, samples=1_280)
    methods: MethodsSettings = MethodsSettings.model_validate(_METHODS)  # type: ignore[valid-type]
    images: Several = Field(
        default=16, description="drawn from the same seeds by full precision and by the folder, for closeness and card"
    )
    shown: Positive = Field(default=8, description="of these, on the card")
    batch_size: Positive = Field(default=16, description="images drawn at once")
    least: dict[str, Positive] = Field(
        default=_LEAST, description="counts that a budget of minutes or memory may cut, by name, and down to where"
    )
    share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.8, description="of a budget of minutes that the plan may fill: what calls take is an estimate"
    )
    longest_hours: Rate = Field(default=24.0, description="without a budget, what takes longer is refused")

    @model_validator(mode="after")
    def _known(self) -> OwnSettings:
        if self.method not in METHODS:
            raise ValueError(f"method: {unknown(self.method, METHODS)}")
        return self

    def of_method(self) -> dict[str, Any]:
        """The settings of the method, as plain JSON."""
        return getattr(self.methods, python_name(self.method)).model_dump(mode="json")


def own_settings(changes: Mapping[str, Any], source: str) -> OwnSettings:
    """The defaults with ``changes``, section by section. Raises ConfigError, naming ``source`` and each wrong key."""
    return validate(OwnSettings, merged(OwnSettings().model_dump(mode="json"), changes), source)
