"""What a network predicts, as the noise of its input x = √ᾱ·x₀ + √(1-ᾱ)·ε (Salimans and Ho 2022, section 4)."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from torch import Tensor

Kind = Literal["epsilon", "v_prediction", "sample"]
KINDS: tuple[Kind, ...] = ("epsilon", "v_prediction", "sample")
"""As diffusers names them: ε itself, v = √ᾱ·ε - √(1-ᾱ)·x₀, or the image x₀."""


class Parametrization(NamedTuple):
    """Of one call of a network. alpha: ᾱ of its timestep."""

    kind: Kind = "epsilon"
    alpha: float = 1.0

    def noise(self, output: Tensor, x: Tensor) -> Tensor:
        """ε by what the network gave for ``x``; all of one shape."""
        signal, deviation = math.sqrt(self.alpha), math.sqrt(1 - self.alpha)
        if self.kind == "v_prediction":
            return signal * output + deviation * x
        if self.kind == "sample":
            return (x - signal * output) / deviation
        return output
