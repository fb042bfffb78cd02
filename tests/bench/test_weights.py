"""The benchmark of the scale search runs through and counts what it searched."""

from __future__ import annotations

import pytest

from quest import architectures
from quest.bench import networks, weights


@pytest.mark.usefixtures("tiny_networks")
@pytest.mark.parametrize("name", ["bedrooms", "imagenet"])
def test_a_row_of_finite_numbers(name: str) -> None:
    header, row = weights.run(name, 4, "cpu").splitlines()[2:]
    network = networks.make(name, "cpu")
    layers = architectures.of(network).roles()
    scales = sum(len(network.get_parameter(f"{layer}.weight")) for layer in layers)
    cells = row.split()
    assert header.split()[:2] == ["network", "parameters"]
    assert (cells[0], int(cells[3]), int(cells[4].replace(",", "")), int(cells[5])) == (name, len(layers), scales, 4)
    seconds, peak, _size, published = (float(cell.replace(",", "")) for cell in cells[6:])
    assert 0 < seconds < 60
    assert peak > 0
    assert published == weights.PUBLISHED_SECONDS[name]
