"""What every section of the configuration is made of: strict settings, bit-widths, the cells of a table."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

FULL_PRECISION = "fp"

NAME = "[a-z0-9][a-z0-9-]*"
"""What datasets, suites and tables may be called: their names are parts of paths and of command lines."""
MOST = 10_000_000  # of whatever is counted; more is a slip of the keyboard

Positive = Annotated[int, Field(gt=0, le=MOST)]
Several = Annotated[int, Field(ge=2, le=MOST)]
NonNegative = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]


class ConfigError(ValueError):
    """A configuration that cannot be run; the message says which key, what was found and what is allowed."""


class Settings(BaseModel):
    """Base of every settings class: unknown keys are errors, values do not change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Width = Literal["4", "8"]
"""Keys of a setting that depends on activation bits: up to 4, and up to 8."""


def width(activation_bits: int) -> Width:
    """Which of the two a number of activation bits falls under."""
    return "4" if activation_bits <= 4 else "8"


def completed(given: Any, default: dict[Width, Any]) -> Any:
    """A setting by `Width` as it was given: keys may be YAML integers, and one that is left out keeps its default; a
    number is the value at any width."""
    if isinstance(given, int | float):
        return dict.fromkeys(default, given)
    return default | {str(bits): value for bits, value in given.items()} if isinstance(given, dict) else given


class Bits(NamedTuple):
    """Bit-widths of weights and activations, written ``w4a8``; 32 is full precision."""

    weight: int
    activation: int

    @classmethod
    def parse(cls, text: str) -> Bits:
        """``"w4a8"`` to Bits(4, 8). Raises ConfigError unless both are in 2…8, or both 32."""
        match = re.fullmatch(r"w(\d+)a(\d+)", text)
        bits = cls(int(match[1]), int(match[2])) if match else None
        if bits is None or str(bits) != text or (bits != cls(32, 32) and not all(2 <= b <= 8 for b in bits)):
            raise ConfigError(
                f"bits: {text!r} is not w<weight bits>a<activation bits> with bits from 2 to 8, like w4a8"
            )
        return bits

    def __str__(self) -> str:
        return f"w{self.weight}a{self.activation}"


UNQUANTIZED = Bits(32, 32)


class Cell(NamedTuple):
    """One row of a table before seeds: a method at a bit-width."""

    method: str
    bits: str
