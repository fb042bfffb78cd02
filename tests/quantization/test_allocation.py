"""Bits go where a byte takes most error off: never more bytes than there are, and the best choice of its size."""

from __future__ import annotations

import itertools

import pytest
import torch

from quest.quantization import allocation
from quest.quantization.allocation import Choice, Option

WIDTHS: tuple[int, ...] = (2, 3, 4, 8)


def drawn(layers: int, seed: int) -> dict[str, list[Option]]:
    """Layers of other sizes, with errors that fall with their bits, sometimes hardly."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for number in range(layers):
        size = int(torch.randint(1, 9, (), generator=generator)) * 8
        errors = torch.rand(len(WIDTHS), generator=generator).cumsum(0).flip(0) ** 3
        found[f"layer{number}"] = [
            Option(bits, size * bits // 8, float(error)) for bits, error in zip(WIDTHS, errors, strict=True)
        ]
    return found


def error(options: dict[str, list[Option]], choice: Choice) -> float:
    return sum(each.error for layer, given in options.items() for each in given if each.bits == choice[layer])


def total_bytes(options: dict[str, list[Option]], choice: Choice) -> int:
    return sum(each.bytes for layer, given in options.items() for each in given if each.bits == choice[layer])


def best(options: dict[str, list[Option]], most: int) -> float:
    """The least error in at most so many bytes, over all choices."""
    every = (dict(zip(options, bits, strict=True)) for bits in itertools.product(WIDTHS, repeat=len(options)))
    return min(error(options, each) for each in every if total_bytes(options, each) <= most)


@pytest.mark.parametrize("seed", range(5))
def test_every_step_of_the_way_is_the_best_of_its_size(seed: int) -> None:
    options = drawn(5, seed)
    choices = list(allocation.ways(options))
    assert choices[0] == dict.fromkeys(options, 2)
    assert choices[-1] == dict.fromkeys(options, 8), "errors always fall"
    for choice in choices:
        size = total_bytes(options, choice)
        assert error(options, choice) == pytest.approx(best(options, size))
        assert allocation.fitting(options, size - total_bytes(options, choices[0])) == choice


@pytest.mark.parametrize("room", range(0, 160, 7))
def test_what_fits_fits(room: int) -> None:
    options = drawn(5, 7)
    least = total_bytes(options, allocation.coarsest(options))
    choice = allocation.fitting(options, room)
    used = total_bytes(options, choice)
    assert used <= least + room
    left = least + room - used
    for layer, given in options.items():
        at = next(each for each in given if each.bits == choice[layer])
        assert all(each.bytes - at.bytes > left for each in given if each.bits > at.bits), "nothing more fits"


def test_bits_that_bring_nothing_are_not_given() -> None:
    options = {
        "a": [Option(2, 2, 1.0), Option(4, 4, 1.0), Option(8, 8, 2.0)],
        "b": [Option(2, 2, 1.0), Option(4, 4, 0.5)],
    }
    assert allocation.fitting(options, 100) == {"a": 2, "b": 4}
    assert len(list(allocation.ways(options))) == 2
