"""How a model is quantized, whatever it draws: from its sampler to the settings of each method."""

from __future__ import annotations

from pydantic import Field, model_validator

from quest.config.learning import CalibrationSettings, ReconstructionSettings
from quest.config.method import MethodSettings
from quest.config.methods import MethodsSettings, python_name
from quest.config.quantizer import QuantizerSettings
from quest.config.sampling import ConditionSettings, SamplerSettings
from quest.config.values import Settings


class QuantizationSettings(Settings):
    """What the chain from calibration to checkpoint depends on."""

    condition: ConditionSettings | None = Field(default=None, description="set for conditional models only")
    sampler: SamplerSettings = SamplerSettings()
    calibration: CalibrationSettings = CalibrationSettings()
    quantizer: QuantizerSettings = QuantizerSettings()
    reconstruction: ReconstructionSettings = ReconstructionSettings()
    methods: MethodsSettings = MethodsSettings()  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _counts_divide_the_steps(self) -> QuantizationSettings:
        # A stage is given the sections that it depends on; what is not there cannot disagree.
        counts = {"calibration.steps": self.calibration.steps} if "calibration" in self.model_fields_set else {}
        counts |= {f"methods.{name}.sets": getattr(self.methods, name).sets for name in self.methods.model_fields_set}
        for key, count in counts.items():
            if self.sampler.steps % count:
                raise ValueError(f"{key} is {count}, which does not divide sampler.steps = {self.sampler.steps}")
        return self

    def method(self, name: str) -> MethodSettings:
        """Settings of one method, or of a variant's method, by the name that people use, like ``q-diffusion``."""
        return getattr(self.methods, python_name(name))
