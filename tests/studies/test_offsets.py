"""The constant part of an error, and which networks' errors are taken apart."""

from __future__ import annotations

import pytest
import torch

from quest.quantization.rounding import Fixed
from quest.studies import offsets
from quest.studies.offsets import parts
from quest.studies.subject import Subject


def test_a_constant_a_channel_is_all_of_an_error_or_none_of_it():
    constant = torch.tensor([3.0, -4.0]).view(1, 2, 1, 1).expand(5, 2, 6, 6)
    found = parts(constant)
    assert found["rms"] == found["constant_rms"] == pytest.approx(12.5**0.5)
    assert found["constant_largest"] == pytest.approx(4)
    assert found["constant_share"] == pytest.approx(1)
    signs = torch.tensor([1.0, -1.0]).repeat(18).view(1, 1, 6, 6)
    varying = parts(signs.expand(5, 2, 6, 6))
    assert varying["rms"] == pytest.approx(1)
    assert varying["constant_share"] == pytest.approx(0)
    # A constant and what varies around it add up in the squares.
    assert parts(constant + signs)["constant_share"] == pytest.approx(12.5 / 13.5)


def test_networks_are_rounded_as_the_artifacts_say(subject: Subject):
    found = [(rounding, bits) for rounding, bits, _ in offsets.networks(subject)]
    assert found == [("nearest", 8), ("blocks", 8), ("nearest", 4), ("blocks", 4), ("temporal", 4)]
    for rounding, bits, network in offsets.networks(subject):
        for name, layer in network.layers().items():
            (quantizer, _), *_ = layer.weight_parts()
            assert isinstance(quantizer.rounding, Fixed) == (rounding != "nearest"), name
            assert quantizer.grid.bits == (8 if name in ("conv_in", "conv_out") else bits), name


def test_rows_and_chart(subject: Subject):
    rows = offsets.measure(subject)
    assert len(rows) == 5 * 2  # networks, steps
    assert all(0 < row["constant_rms"] <= row["rms"] for row in rows)
    errors = {(row["rounding"], row["weight_bits"]): row["rms"] for row in rows}
    assert errors["nearest", 8] < errors["nearest", 4]
    assert len(set(errors.values())) == 5
    assert [len(axes.lines) for axes in offsets.chart("tiny", rows).axes] == [6, 6]
