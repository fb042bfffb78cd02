"""Whether learned rounding has converged: what is compared with what."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quest.learning import reconstruction
from quest.studies import convergence
from quest.studies.convergence import TIMES, TOLERANCE
from quest.studies.subject import Subject


def with_iterations(subject: Subject, iterations: int, lr: float = 0.05) -> Subject:
    changed = subject.settings.reconstruction.model_copy(update={"iterations": iterations, "lr": lr})
    return replace(subject, settings=subject.settings.model_copy(update={"reconstruction": changed}))


def test_few_iterations_have_not_converged_and_more_come_closer(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = reconstruction.units
    monkeypatch.setattr(reconstruction, "units", lambda network: units(network)[4:5])
    (few,), (more,) = (convergence.measure(with_iterations(subject, *each)) for each in ((20, 0.05), (400, 0.3)))
    assert few["unit"] == more["unit"] == units(subject.quantized(subject.bits, calibrated=False))[4].name
    assert few["change"] < -TOLERANCE, "five times as many are better"
    assert not few["converged"]
    assert abs(more["change"]) < abs(few["change"]) / 2


def test_the_unit_keeps_the_rounding_of_the_protocol(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after a unit sees it as the protocol learns it, not as the longer run does."""
    learn, seen = reconstruction.learn_unit, []

    def spy(unit, cache, settings, generator):
        seen.append((unit.name, settings.iterations))
        return learn(unit, cache, settings, generator)

    monkeypatch.setattr(reconstruction, "learn_unit", spy)
    rows = convergence.measure(with_iterations(subject, 3))
    assert seen == [(row["unit"], count) for row in rows for count in (3 * TIMES, 3)]


def test_rows_and_chart(subject: Subject) -> None:
    rows = convergence.measure(with_iterations(subject, 2))
    assert [row["unit"] for row in rows] == [
        unit.name for unit in reconstruction.units(subject.quantized(subject.bits))
    ]
    for row in rows:
        assert row["change"] == pytest.approx((row["longer"] - row["learned"]) / row["learned"])
        assert row["converged"] == (abs(row["change"]) <= TOLERANCE)
        assert 0 < row["learned"] < 2 * row["nearest"]
    (axes,) = convergence.chart("tiny", rows).axes
    assert [line.get_label() for line in axes.get_lines()] == ["2 iterations", "10 iterations"]
    assert len(axes.get_xticks()) == len(rows)
