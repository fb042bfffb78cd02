"""Exponents are recovered and their errors grow with noise; a miniature of every work fills the table."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from quest.bench import growth
from quest.bench.growth import Cost, Curve, Grown
from quest.bench.works import WORKS, Point

CPU = torch.device("cpu")
SIZES = (1, 2, 4, 8, 16)


@pytest.mark.parametrize("exponent", [-0.5, 0.0, 1.0, 1.7])
def test_a_known_exponent_is_recovered(exponent: float) -> None:
    found = growth.fit(SIZES, [3 * size**exponent for size in SIZES])
    assert found.exponent == pytest.approx(exponent, abs=1e-9)
    assert found.error == pytest.approx(0, abs=1e-6)


def test_noise_widens_the_error_and_the_error_tells_how_far_off_a_fit_is() -> None:
    generator = np.random.default_rng(0)

    def fits(noise: float) -> list[growth.Fit]:
        costs = [[size * math.exp(generator.normal(0, noise)) for size in SIZES] for _ in range(400)]
        return [growth.fit(SIZES, each) for each in costs]

    for noise in (0.01, 0.1):
        found = fits(noise)
        spread = np.std([each.exponent for each in found])
        # Of least squares: the noise over the root of the summed squares of log sizes about their mean.
        assert spread == pytest.approx(noise / math.sqrt(10 * math.log(2) ** 2), rel=0.15)
        assert np.sqrt(np.mean([each.error**2 for each in found])) == pytest.approx(spread, rel=0.15)


def test_what_does_not_grow_in_memory_has_exponent_0() -> None:
    costs = tuple(Cost(0.1 * size, 0.1 * size, bytes) for size, bytes in zip(SIZES, (0, 4096, 0, 8192, 0), strict=True))
    found = Grown(Curve("sampling", "samples", SIZES, 1.0, 0.0), SIZES, costs)
    assert found.memory == pytest.approx((0, 0), abs=1e-9)  # all below what can be told apart
    assert found.time.exponent == pytest.approx(1)


def test_every_quantity_of_a_curve_is_one_of_a_point() -> None:
    for curve in growth.CURVES:
        for kind in ("cpu", "cuda"):
            at = growth.points(curve, kind)
            name = "width" if curve.quantity == "parameters" else curve.quantity
            values = [getattr(point, name) for point in at]
            assert values == sorted(set(values))
            assert len(values) >= 3 + (kind == "cpu")
            assert all(point.samples >= point.batch for point in at if curve.work == "sampling")
    assert {curve.work for curve in growth.CURVES} == set(WORKS)


def test_a_miniature_of_every_work_fills_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Point(batch=2, samples=2, iterations=1, width=16, bits=4)
    quantities = dict.fromkeys(WORKS, "parameters") | {"metrics": "samples", "sampling": "iterations"}
    sizes = {"parameters": (16, 24, 32), "samples": (60, 80, 100), "iterations": (1, 2, 3)}
    curves = tuple(Curve(work, name, sizes[name], 1.0, 0.0) for work, name in quantities.items())
    monkeypatch.setattr(growth, "CURVES", curves)
    monkeypatch.setattr(growth, "_BASES", dict.fromkeys(WORKS, tiny))
    # Before each point garbage is collected, which in a process of many tests takes longer than all the works.
    monkeypatch.setattr(growth.resident, "begin_anew", lambda: None)
    grown = list(growth.run(CPU, repeats=1))
    assert [each.curve for each in grown] == list(curves)
    assert all(math.isfinite(number) for each in grown for cost in each.costs for number in cost)
    # So small a work may take no longer than what is done once and taken off; these have nothing to take off.
    whole = [
        each for each in grown if each.curve.work in ("weight search", "activation search", "recording", "metrics")
    ]
    assert all(cost.seconds > 0 for each in whole for cost in each.costs)
    more = next(each for each in grown if each.curve.work == "weight search")
    assert 3 < more.sizes[-1] / more.sizes[0] < 4.5  # parameters go with the square of the width

    header, *rows = (re.split(r" {2,}", line.strip()) for line in growth.table(grown).splitlines())
    assert [row[0] for row in rows] == list(WORKS)
    assert all(len(row) == len(header) and all(row) for row in rows)
    assert "nan" not in growth.table(grown)

    growth.save(grown, CPU, tmp_path / "growth.json")
    where, again = growth.load(tmp_path / "growth.json")
    assert where.endswith("beyond what was resident before")
    assert [(each.curve, each.sizes) for each in again] == [(each.curve, each.sizes) for each in grown]
    for saved, measured in zip(again, grown, strict=True):
        for cost, expected in zip(saved.costs, measured.costs, strict=True):
            assert cost == pytest.approx(expected, rel=1e-3)  # written to four digits
    growth.chart(again, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def test_an_unknown_work_is_named() -> None:
    with pytest.raises(ValueError, match=r"--work: .*sampler"):
        next(growth.run(CPU, only=["sampler"]))
