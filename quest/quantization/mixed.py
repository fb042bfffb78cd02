"""Whole layers at other weight bits than the rest, chosen layer by layer: as a policy, so that a recipe keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from quest.config.values import Bits
from quest.quantization.network import QuantizedNetwork
from quest.quantization.policy import EVERYTHING, Policy
from quest.quantization.recipe import Recipe
from quest.quantization.roles import Role

NAME = "mixed"


@dataclass(frozen=True)
class Mixed(Policy):
    """A policy with bits of single layers before its own exceptions.

    around: the policy that they were chosen under. A method that treats exceptions apart asks that one: a layer with
    chosen bits is no exception. Read back from a manifest this is a plain `Policy` with the same bits.
    """

    around: Policy = EVERYTHING

    def excepts(self, layer: str, role: Role) -> bool:
        return self.around.excepts(layer, role)


def recipe(base: Recipe, roles: Mapping[str, Role], bits: Mapping[str, int]) -> Recipe:
    """``base`` with weight bits of single layers, by name; their inputs keep the bits that they have.

    Raises ValueError where sampling steps choose activation bits, for a layer of its own bits cannot follow them.
    """
    if base.lower:
        raise ValueError("layers of their own weight bits cannot have activation bits that change between steps")
    own = tuple((name, Bits(bits[name], base.layer_bits(name, roles[name]).activation)) for name in bits)
    policy = base.policy
    return replace(base, policy=Mixed(NAME, (*own, *policy.overrides), policy.attention, policy))


def label(network: QuantizedNetwork) -> str:
    """The bits of a network in words: like w4a8, and where they were chosen layer by layer w3.41a8, of the mean."""
    bits = network.recipe.bits
    if network.recipe.policy.name != NAME:
        return str(bits)
    layers = network.layers().values()
    stored = sum(layer.weight.numel() * layer.weight_parts()[0][0].grid.bits for layer in layers)
    return f"w{stored / sum(layer.weight.numel() for layer in layers):.2f}a{bits.activation}"
