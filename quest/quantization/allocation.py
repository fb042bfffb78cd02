"""How many bits each layer gets: from the fewest on, the finer option that takes most error off for a byte.

Errors of single layers are taken to add up. As long as there is room for all, this goes along the lower convex hull of
each layer's (bytes, error), and each choice on the way is the best of its size (Shoham and Gersho 1988); near the end
of the room, the best of what still fits is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

WIDTHS = (2, 3, 4, 5, 6, 8)
"""Weight bits that a layer may be given, from few to many."""
Choice = dict[str, int]
"""Weight bits by the name of a layer."""


class Option(NamedTuple):
    """A layer at some bits. bytes: of its codes. error: of the samples when it alone is so coarse."""

    bits: int
    bytes: int
    error: float


def coarsest(options: Mapping[str, Sequence[Option]]) -> Choice:
    """Every layer at its fewest bits."""
    return {layer: min(given).bits for layer, given in options.items()}


def fitting(options: Mapping[str, Sequence[Option]], room: float) -> Choice:
    """The choice that adds at most ``room`` bytes to `coarsest`."""
    *_, last = ways(options, room)
    return last


def ways(options: Mapping[str, Sequence[Option]], room: float = math.inf) -> Iterator[Choice]:
    """The choices from `coarsest` on, each with one layer finer than before, until nothing fits or helps."""
    now = {layer: min(given) for layer, given in options.items()}
    while True:
        yield {layer: option.bits for layer, option in now.items()}
        gains = {layer: _best(now[layer], options[layer], room) for layer in now}
        layer = max(now, key=lambda each: gains[each][0])
        gain, option = gains[layer]
        if gain <= 0:
            return
        room -= option.bytes - now[layer].bytes
        now[layer] = option


def _best(now: Option, given: Sequence[Option], room: float) -> tuple[float, Option]:
    """The error for a byte that a finer option takes off at most, and that option; no gain where none fits."""
    finer = [each for each in given if now.bytes < each.bytes <= now.bytes + room]
    gains = [((now.error - each.error) / (each.bytes - now.bytes), each) for each in finer]
    return max(gains, default=(0.0, now))
