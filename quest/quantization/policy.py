"""Which layers get which bits. Papers differ here as much as in their methods, so it is an option of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from quest.config.values import UNQUANTIZED, Bits
from quest.quantization.roles import Role


@dataclass(frozen=True)
class Policy:
    """Exceptions from the bit-width of a run.

    overrides: pairs of a role, or a pattern of layer names (fnmatch), and the bits of such a layer's weight and input;
    32 leaves that part in full precision. The first that matches wins. attention: whether the operands of the
    attention products are quantized.
    """

    name: str
    overrides: tuple[tuple[str, Bits], ...] = ()
    attention: bool = True

    def bits(self, layer: str, role: Role, default: Bits) -> Bits:
        """Bits of one layer."""
        return self._exception(layer, role) or default

    def excepts(self, layer: str, role: Role) -> bool:
        """Whether a layer has bits other than the run's, or the same ones whatever the run's are."""
        return self._exception(layer, role) is not None

    def _exception(self, layer: str, role: Role) -> Bits | None:
        return next((bits for key, bits in self.overrides if role == key or fnmatch(layer, key)), None)

    def plain(self) -> dict[str, Any]:
        """As JSON, for manifests."""
        overrides = [[key, *bits] for key, bits in self.overrides]
        return {"name": self.name, "overrides": overrides, "attention": self.attention}

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> Policy:
        """Inverse of `plain`."""
        overrides = tuple((key, Bits(weight, activation)) for key, weight, activation in content["overrides"])
        return cls(content["name"], overrides, content["attention"])


FULL = UNQUANTIZED
EIGHT = Bits(8, 8)

EVERYTHING = Policy("everything")
"""Everything has the bits of the run: every convolution and linear layer, and both attention products."""

COMMON = Policy("common", ((Role.FIRST, EIGHT), (Role.LAST, EIGHT)))
"""Everything is quantized, the first and the last layer to 8 bits, as most papers have them."""

TIME_FULL_PRECISION = Policy(
    "time_full_precision", (*COMMON.overrides, (Role.TIME_MLP, FULL), (Role.TIME_PROJECTION, FULL))
)
"""As `COMMON` but the time embedding, whose few outputs can be computed once and stored (QuEST, table 2)."""

NAMED = {policy.name: policy for policy in (COMMON, EVERYTHING, TIME_FULL_PRECISION)}
"""The policies that do not depend on a method."""
