"""Classifier-free guidance: a prediction from one under the condition and one under none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho and Salimans 2022): ε = ε(null) + scale · (ε(context) - ε(null)).

    context: (N, L, d), of each sample. null: (1, L, d), of no condition. At scale 1 only the condition is used.
    """

    context: Tensor
    null: Tensor
    scale: float = 1.0

    def halves(self) -> list[Tensor]:
        """The contexts that one prediction needs, each (N, L, d)."""
        return [self.context] if self.scale == 1 else [self.null.expand_as(self.context), self.context]

    def join(self, predicted: Sequence[Tensor]) -> Tensor:
        """The guided prediction from those under each of `halves`."""
        if len(predicted) == 1:
            return predicted[0]
        null, conditional = predicted
        return null + self.scale * (conditional - null)
