"""The grid that every method stands on."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from quest.config.values import Positive, Settings, Width, completed

ActivationGranularity = Literal["per_tensor", "offsets", "multiples", "per_token", "per_channel"]

FACTORED: tuple[ActivationGranularity, ...] = ("per_tensor", "offsets", "multiples")
"""Those whose scales factor out of a sum of integers, so that integer kernels can multiply them."""


def multiples_of_few_bits(given: dict[Width, ActivationGranularity]) -> dict[Width, ActivationGranularity]:
    """``given``, unless it asks for multiples at 8 bits, which raises ValueError."""
    if given["8"] == "multiples":
        raise ValueError("8: multiples: times a whole number, codes of 8 bits fit no byte; multiples are for key 4")
    return given


OF_WEIGHTS = ("weight_search", "weight_group", "split_shortcuts", "roles")
"""The keys that the grids of the weights depend on, and so all cells that share a reconstruction."""


class QuantizerSettings(Settings):
    """The grid that every method stands on (QuEST, section 4.1 and released settings)."""

    weight_search: Literal["max", "mse"] = Field(
        default="mse", description="range of a weight channel: its extremes, or the best of 80 shrinks by L2.4 error"
    )
    weight_group: Positive | None = Field(
        default=None,
        description="consecutive inputs of an output channel that share a weight scale, like 64; without, all of them; "
        "the first convolution, which has few inputs, keeps one scale a channel",
    )
    activation_symmetric: bool = Field(default=False, description="signed grid with zero point 0, or an asymmetric one")
    activation_search: Literal["max", "mse", "percentile"] = Field(
        default="percentile",
        description="range of an activation: its extremes, the best of 80 shrinks, or the best of three percentiles",
    )
    activation_granularity: dict[Width, ActivationGranularity] = Field(
        default={"8": "per_tensor", "4": "per_channel"},
        description="what shares an activation scale, up to 4 bits and up to 8 (per channel at 4: the released "
        "code); offsets: a scale for a whole tensor, and a zero point for each channel of a layer's input; multiples: "
        "these, and a whole number for each channel, 1 to 8, that its codes are multiplied by (up to 4 bits)",
    )
    softmax_bits: Annotated[int, Field(ge=2, le=16)] = Field(default=8, description="bits of attention probabilities")
    edge_activation_bits: Annotated[int, Field(ge=2, le=8)] = Field(
        default=8, description="activation bits of the first and the last convolution"
    )
    split_shortcuts: bool = Field(
        default=False, description="quantize the two halves of a concatenated shortcut separately (Q-Diffusion)"
    )
    roles: dict[str, str] = Field(
        default={},
        description="roles of layers by patterns of their names, like `{'*.extra': convolution}`, for those that the "
        "architecture does not explain or explains otherwise; of several patterns that match, the longest",
    )
    legacy_symmetric_levels: bool = Field(
        default=False,
        description="codes -2^b to 2^b of symmetric activations: 33 at 4 bits, which is 5.04 bits and counted as such "
        "(QuEST's released code until August 2024)",
    )

    @field_validator("activation_granularity", mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        return completed(given, cls.model_fields["activation_granularity"].default)

    _few = field_validator("activation_granularity")(multiples_of_few_bits)

    @model_validator(mode="after")
    def _legacy_is_symmetric(self) -> QuantizerSettings:
        if self.legacy_symmetric_levels and not self.activation_symmetric:
            raise ValueError("legacy_symmetric_levels is of symmetric grids; set activation_symmetric too")
        return self
