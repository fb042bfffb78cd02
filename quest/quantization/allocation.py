"""How many bits each layer gets: upgrades from the fewest, those first that take most error off for a byte.

Errors of single layers are taken to add up. Then the upgrades along the lower convex hull of each layer's (bytes,
error), in the order of their gain for a byte, are the best choice at every size that they pass through (Shoham and
Gersho 1988); at a size between two of them, what still fits is taken in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

Choice = dict[str, int]
"""Weight bits by the name of a layer."""


class Option(NamedTuple):
    """A layer at some bits. bytes: of its codes. error: of the network's output when it alone is so coarse."""

    bits: int
    bytes: int
    error: float


class Upgrade(NamedTuple):
    """From one option of a layer to a finer one. bytes: that it adds. gain: error that it takes off, a byte."""

    layer: str
    bits: int
    bytes: int
    gain: float


def coarsest(options: Mapping[str, Sequence[Option]]) -> Choice:
    """Every layer at its fewest bits."""
    return {layer: min(each.bits for each in given) for layer, given in options.items()}


def upgrades(options: Mapping[str, Sequence[Option]]) -> list[Upgrade]:
    """All upgrades from `coarsest`, best first, and of a layer one after another."""
    found = [step for layer, given in options.items() for step in _steps(layer, given)]
    return sorted(found, key=lambda step: -step.gain)  # stable, and along a hull gains fall


def fitting(options: Mapping[str, Sequence[Option]], room: int) -> Choice:
    """The best choice that adds at most ``room`` bytes to `coarsest`."""
    chosen, full = coarsest(options), set[str]()
    for step in upgrades(options):
        if step.layer in full:
            continue
        if step.bytes > room:
            full.add(step.layer)  # a finer option needs this one first
            continue
        chosen[step.layer], room = step.bits, room - step.bytes
    return chosen


def prefixes(options: Mapping[str, Sequence[Option]]) -> list[Choice]:
    """`coarsest`, and the choice after each upgrade; the last has every layer at its most useful bits."""
    choices = [coarsest(options)]
    for step in upgrades(options):
        choices.append({**choices[-1], step.layer: step.bits})
    return choices


def total_bytes(options: Mapping[str, Sequence[Option]], choice: Choice) -> int:
    """Bytes of the codes of all layers."""
    return sum(each.bytes for layer, given in options.items() for each in given if each.bits == choice[layer])


def _steps(layer: str, given: Sequence[Option]) -> Iterator[Upgrade]:
    """Along the lower convex hull of (bytes, error): from each option to the finer one of the largest gain a byte."""
    options = sorted(given)
    at = options[0]
    while finer := [each for each in options if each.bytes > at.bytes and each.error < at.error]:
        best = max(finer, key=lambda each: ((at.error - each.error) / (each.bytes - at.bytes), each.bytes))
        yield Upgrade(layer, best.bits, best.bytes - at.bytes, (at.error - best.error) / (best.bytes - at.bytes))
        at = best
