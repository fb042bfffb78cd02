"""Standard errors from one set of images: V(n) = V(n/2)² / V(n/4), from halves and quarters of it.

Disjoint parts of a set are what redrawn sets of their size would be, so the variance V of a metric over sets of n/2 and
of n/4 images is seen without bias. That of n images follows if V goes by any power of n (subsampling with an unknown
rate: Bertail, Politis & Romano 1999). The power is 1/n for smooth metrics, 1/n² for distances between equal
distributions, and nearly 1 for recall of few real images, where each is covered or not by chance.
The bootstrap repeats images, whose distance 0 then breaks the radii of precision and recall; the jackknife leaves all
neighbours but a few, and overstates the error of recall by a third to a factor of two.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from quest.metrics.statistics import GROUPS


class Estimate(NamedTuple):
    """A number and its standard error; None where the images are too few to tell."""

    value: float
    error: float | None


_FIELD = ((0, 0, 0, 0), (0, 1, 2, 3), (0, 2, 3, 1), (0, 3, 1, 2))  # products in the field of four elements


def _cuts() -> list[list[int]]:
    """Five ways to cut the groups into quarters: the quarter of each group.

    The first 16 groups are the points (x, y) of the affine plane over the field of four, whose parallel lines
    y + ax = quarter or x = quarter are cuts; the other four, x = 4, are one in each quarter. So quarters of different
    cuts have one group in common or two, and what the cuts see is nearly independent.
    """
    points = [divmod(group, 4) for group in range(GROUPS)]
    return [
        *([y ^ row[x] if x < 4 else y for x, y in points] for row in _FIELD),  # + of the field is exclusive or
        [x if x < 4 else y for x, y in points],
    ]


_QUARTERS = [[[g for g, own in enumerate(cut) if own == quarter] for quarter in range(4)] for cut in _cuts()]
_HALVES = [
    (first + second, [g for g in range(GROUPS) if g not in first + second])
    for (first, *others) in _QUARTERS
    for second in others
]
SUBSETS: tuple[tuple[int, ...], ...] = tuple(map(tuple, itertools.chain(*_HALVES, *_QUARTERS)))
"""Groups of each half, two that make the set after one another, and then of each quarter, four after one another."""


def members(rows: int) -> Tensor:
    """Which of ``rows`` rows, in groups by turns, are in each of SUBSETS: (len(SUBSETS), rows) bool."""
    groups = torch.arange(rows) % GROUPS
    return torch.stack([torch.isin(groups, torch.tensor(subset)) for subset in SUBSETS])


def standard_error(values: Sequence[float] | Tensor) -> float:
    """The standard error of a metric of all images. values: the metric of the images of each of SUBSETS."""
    values = torch.as_tensor(values, dtype=torch.float64)
    halves, quarters = values.split([2 * len(_HALVES), 4 * len(_QUARTERS)])
    first, second = halves.view(-1, 2).T
    half = (first - second).square().mean().item() / 2  # of independent parts, differences have twice the variance
    quarter = quarters.view(-1, 4).var(1).mean().item()
    # Chance aside, more images make no metric worse, and none better than by 1/n².
    power = min(1.0, max(0.25, half / quarter)) if quarter else 1.0
    return math.sqrt(half * power)
