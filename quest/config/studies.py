"""How much the studies look at."""

from __future__ import annotations

from pydantic import Field, field_validator

from quest.config.values import UNQUANTIZED, Bits, Positive, Settings, Several


class AnalysisSettings(Settings):
    """How much the studies look at; only the `analyse` rule reads this."""

    bits: str = Field(default="w4a4", description="bit-width of the networks that are studied")
    samples: Positive = Field(default=16, description="trajectories that layers are observed on")
    steps: Positive = Field(
        default=5, description="most sampling steps that layers are observed at; as many as divide sampler.steps"
    )
    images: Several = Field(
        default=32, description="images drawn for each setting of the sensitivity and token studies"
    )

    @field_validator("bits")
    @classmethod
    def _quantized(cls, bits: str) -> str:
        if Bits.parse(bits) == UNQUANTIZED:
            raise ValueError("w32a32 is full precision; expected bits from 2 to 8")
        return bits
