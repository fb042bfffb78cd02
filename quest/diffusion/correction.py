"""A sampler that knows the noise of its quantized network (PTQD, sections 3.2 and 3.3).

At each sampling step the error of the predicted noise is taken as Δ = ε̂ - ε = k·ε + r, where r has a mean (the bias)
and a standard deviation s. A step x' = A·x + c·ε + σ·z then goes on with
    e = (ε̂ - bias) / (1 + k⁺)    and    σ'² = max(0, σ² - c²·s² / (1 + k⁺)²),    k⁺ = max(k, 0),
so that what r adds to the variance is taken from the sampler's own noise. Where the sampler adds none (η = 0), only e
acts; where r has more variance than σ², the rest of it stays. Anti-correlated error (k < 0) is not divided out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

PREFIX = "sampler."
"""What the names of a correction's tensors begin with in a checkpoint."""

Direction = Literal["reduced", "original"]


class Update(NamedTuple):
    """Coefficients of one sampling step x' = A·x + c·ε + σ·z: noise is c, deviation is σ."""

    noise: float
    deviation: float


@dataclass(frozen=True)
class Correction:
    """Tables over the sampling steps S, noisiest first; all zero changes nothing.

    slope: (S,) float32, k. bias: (S, C) float32, of each channel. deviation: (S,) float32, s.
    direction: whether σ' or the original σ stands in the coefficient of e, √(1 - ᾱ' - σ²): "reduced" as PTQD's
    released sampler has it, "original" keeps the mean of the step.
    """

    slope: Tensor
    bias: Tensor
    deviation: Tensor
    direction: Direction = "reduced"

    def noise(self, predicted: Tensor, step: int) -> Tensor:
        """e, the corrected prediction; predicted: (N, C, H, W)."""
        bias = self.bias[step].to(predicted).view(-1, 1, 1)
        return (predicted - bias) / self._divisor(step)

    def residual(self, step: int) -> float:
        """Standard deviation of what is left in e: s / (1 + k⁺)."""
        return float(self.deviation[step]) / self._divisor(step)

    def shrink(self, step: int, update: Update) -> float:
        """σ'/σ, from 0 (saturated) to 1."""
        if update.deviation == 0:
            return 1.0
        return math.sqrt(max(0.0, 1 - (update.noise * self.residual(step) / update.deviation) ** 2))

    def randomness(self, step: int, update: Update, eta: float, z: Tensor | None) -> tuple[float, Tensor | None]:
        """η and the standard normal z that give a plain DDIM step the noise of deviation σ'."""
        shrink = self.shrink(step, update)
        if self.direction == "reduced":
            return eta * shrink, z
        return eta, None if z is None else z * shrink

    def _divisor(self, step: int) -> float:
        return 1 + max(float(self.slope[step]), 0.0)

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by the names that a checkpoint gives them, and the rest as JSON.

        Each has memory of its own, for files refuse tensors that share it, as tables of zeros may.
        """
        tensors = {"slope": self.slope, "bias": self.bias, "deviation": self.deviation}
        return {PREFIX + name: tensor.clone() for name, tensor in tensors.items()}, {"direction": self.direction}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], notes: Mapping[str, Any], steps: int, channels: int) -> Correction:
        """Inverse of `export`. Raises ValueError naming a tensor that is missing, strange or misshapen."""
        shapes = {PREFIX + "slope": (steps,), PREFIX + "bias": (steps, channels), PREFIX + "deviation": (steps,)}
        if strange := sorted(set(tensors) - set(shapes)):
            raise ValueError(f"{strange[0]}: not part of a sampler's correction, which has {', '.join(shapes)}")
        for name, shape in shapes.items():
            if name not in tensors:
                raise ValueError(
                    f"{name}: missing, but {', '.join(sorted(tensors))} of the sampler's correction is there"
                )
            found = tensors[name]
            if found.shape != shape or not bool(torch.isfinite(found).all()):
                raise ValueError(f"{name}: found shape {tuple(found.shape)}, expected {shape}, all finite")
        return cls(*(tensors[name] for name in shapes), direction=notes["direction"])
