"""The benchmark of optimisation steps runs through on a tiny network, and its hours are what its parts add up to."""

from __future__ import annotations

import math
import re

import pytest
from torch import nn

from quest.bench import training


def cells(line: str) -> list[str]:
    """The columns of a table's line, which two spaces or more part."""
    return [cell for cell in re.split(r" {2,}", line.strip()) if cell]


@pytest.mark.usefixtures("tiny_networks")
@pytest.mark.parametrize(("name", "rounding_ms"), [("bedrooms", 37.9), ("imagenet", 30.2)])
def test_every_table_is_filled(name: str, rounding_ms: float) -> None:
    text = training.run([name], iterations=2, batch=4, device="cpu")
    machine, title, steps, blocks, totals = text.split("\n\n")
    assert machine.endswith("on a GPU convolutions in float32, products in float32")
    assert title.startswith(name)
    names = [cells(line)[0] for line in steps.splitlines()[1:]]
    assert names == [
        "full precision, forward of 4",
        "forward + backward of 1, per sample",
        "forward + backward of 4, per sample",
        "tla step, batch 2",
        "cma step, batch 4",
    ]
    for line in steps.splitlines()[1:]:
        assert all(math.isfinite(float(cell.replace(",", ""))) for cell in cells(line)[1:3])
    units = sum(int(cells(line)[2]) for line in blocks.splitlines()[1:])
    rounding, scales = (cells(line) for line in totals.splitlines()[1:])
    assert int(rounding[1]) == int(scales[1]) == units
    assert float(rounding[6]) == pytest.approx(rounding_ms, abs=0.1)


def test_hours_are_steps_of_all_units() -> None:
    unit = training.Unit("conv_in", nn.Identity(), {})
    blocks = [training.Block(unit, 3, 10.0, 1.0), training.Block(unit, 1, 50.0, 5.0)]
    rounding, scales = training._total_table("bedrooms", blocks).splitlines()[1:]
    assert cells(rounding)[1:5] == ["4", "20,000", "20.00", "0.44"]
    assert cells(scales)[1:5] == ["4", "5,000", "2.00", "0.01"]
