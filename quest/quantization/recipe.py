"""Everything that fixes the grids of a quantized network, as data: what a checkpoint is read by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quest.config.quantizer import QuantizerSettings
from quest.config.reading import unknown
from quest.config.values import Bits, width
from quest.quantization.granularity import Granularity, PerAxis, PerGroup
from quest.quantization.grid import Grid
from quest.quantization.policy import EVERYTHING, Policy
from quest.quantization.roles import Role


@dataclass(frozen=True)
class Recipe:
    """Everything that fixes the grids of a quantized network.

    bits: of weights and activations. sets, steps: groups of sampling steps with their own activation scales, and
    sampling steps. policy: which layers have other bits. lower: activation bit-widths below that of ``bits``, which a
    sampling step may use instead (`QuantizedNetwork.use`). Raises ValueError for a role that there is not.
    """

    bits: Bits
    quantizer: QuantizerSettings
    sets: int
    steps: int
    policy: Policy = EVERYTHING
    lower: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for pattern, role in self.quantizer.roles.items():
            if role not in set(Role):
                raise ValueError(f"quantizer.roles: {pattern}: {unknown(role, map(str, Role))}")

    def plain(self) -> dict[str, Any]:
        """As JSON, for manifests."""
        quantizer = self.quantizer.model_dump(mode="json")
        return {
            "bits": str(self.bits),
            "quantizer": quantizer,
            "sets": self.sets,
            "steps": self.steps,
            "policy": self.policy.plain(),
            "lower": list(self.lower),
        }

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> Recipe:
        """Inverse of `plain`."""
        quantizer = QuantizerSettings.model_validate(content["quantizer"])
        policy = Policy.from_plain(content["policy"])
        lower = tuple(content.get("lower", ()))
        return cls(Bits.parse(content["bits"]), quantizer, content["sets"], content["steps"], policy, lower)

    @property
    def roles(self) -> tuple[tuple[str, Role], ...]:
        """Patterns of layer names (fnmatch) and the roles that they give, whatever the architecture says."""
        return tuple((pattern, Role(role)) for pattern, role in self.quantizer.roles.items())

    @property
    def widths(self) -> tuple[int, ...]:
        """All activation bit-widths, that of ``bits`` first."""
        return (self.bits.activation, *self.lower)

    def layer_bits(self, name: str, role: Role, width: int | None = None) -> Bits:
        """Bits of a layer at an activation bit-width, that of ``bits`` by default; inputs of the first and the last
        convolution have their own (QuEST, released code)."""
        edge = role in (Role.FIRST, Role.LAST)
        activation = self.quantizer.edge_activation_bits if edge else width or self.bits.activation
        return self.policy.bits(name, role, Bits(self.bits.weight, activation))

    def weight_granularity(self, role: Role) -> Granularity:
        """What shares a weight scale; the few inputs of the first convolution are never grouped."""
        group = self.quantizer.weight_group
        return PerAxis(0) if group is None or role is Role.FIRST else PerGroup(group)

    def activation_granularity(self, bits: int) -> str:
        """The name of what shares an activation scale at a bit-width."""
        return self.quantizer.activation_granularity[width(bits)]

    def activation_grid(self, bits: int) -> Grid:
        """Grid of layer inputs and attention operands."""
        if self.quantizer.legacy_symmetric_levels:
            return Grid(bits, "legacy_symmetric")
        return Grid(bits, "symmetric" if self.quantizer.activation_symmetric else "asymmetric")
