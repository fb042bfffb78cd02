"""Differences between cells on the same noise, and how sure they are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

CONFIDENCE = 0.95
_DECIBEL = 10 / math.log(10)

Values = Mapping[int, float]
"""A metric's value on each seed, or of each chain."""


class Difference(NamedTuple):
    """Second minus first, and its standard error, None where it cannot be estimated."""

    value: float
    error: float | None


class Interval(NamedTuple):
    """Where a difference lies with `CONFIDENCE`."""

    low: float
    high: float


def difference(first: Values, second: Values) -> Difference:
    """Second minus first, in the mean over seeds.

    On the same seeds, which share their noise, the error is that of the mean of the differences of each seed; on
    others, that of the difference of two independent means. Under two seeds there is none.
    """
    value = statistics.fmean(second.values()) - statistics.fmean(first.values())
    if min(len(first), len(second)) < 2:
        return Difference(value, None)
    if set(first) == set(second):
        return Difference(value, statistics.stdev(second[s] - first[s] for s in first) / math.sqrt(len(first)))
    variances = [statistics.variance(values.values()) / len(values) for values in (first, second)]
    return Difference(value, math.sqrt(sum(variances)))


def interval(first: Values, second: Values) -> Interval | None:
    """Where second minus first lies in the mean over all chains there might have been; values on the same chains.

    Student's t over the differences of each chain. Every chain draws its own images, so their noise is in it, and what
    two methods share in a chain (calibration data, noise) is not. None with fewer than two chains.
    """
    value, error = difference(first, second)
    return None if error is None else _around(value, error, len(first))


def interval_of_images(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Interval:
    """Where the first PSNR minus the second lies, in dB, in the mean over sets of images, over all images that the same
    networks might draw.

    first, second: mean squared error of each image, a set after another, image i of both from the same noise. The error
    of a logarithm of a ratio of means is that of the mean of eᵢ/ē − eᵢ′/ē′ (to first order).
    """
    value = variance = 0.0
    for own, other in zip(first, second, strict=True):
        means = statistics.fmean(own), statistics.fmean(other)
        value += _DECIBEL * math.log(means[1] / means[0])
        variance += statistics.variance(a / means[0] - b / means[1] for a, b in zip(own, other, strict=True)) / len(own)
    images = sum(map(len, first))
    return _around(value / len(first), _DECIBEL * math.sqrt(variance) / len(first), images)


def _around(value: float, error: float, number: int) -> Interval:
    from scipy.special import stdtrit

    reach = error * float(stdtrit(number - 1, (1 + CONFIDENCE) / 2))
    return Interval(value - reach, value + reach)
