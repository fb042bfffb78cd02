"""Whether learned rounding has converged: what is compared with what."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

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


def test_the_loss_is_that_on_states_which_nothing_was_learned_from(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding that is fitted to a single sample is worse on others than rounding to nearest, however long it runs."""
    units = reconstruction.units
    monkeypatch.setattr(reconstruction, "units", lambda network: units(network)[4:5])
    fitted = with_iterations(subject, 100)
    few = fitted.settings.reconstruction.model_copy(update={"samples": 1, "batch_size": 1})
    fitted = replace(fitted, settings=fitted.settings.model_copy(update={"reconstruction": few}))
    (row,) = convergence.measure(fitted)
    assert row["seen_longer"] < row["longer"]
    assert row["seen_longer"] < row["seen_learned"]
    network = subject.quantized(subject.bits, calibrated=False)
    (unit,) = reconstruction.units(network)
    with network.quantizing(weights=True, activations=False):
        cache = reconstruction.record(network, unit, convergence.unseen(subject), 64, weights=True)
        assert row["nearest"] == pytest.approx(reconstruction.error(unit, cache))
    assert not any(
        torch.equal(x, y) for x in convergence.unseen(subject).x for y in subject.calibration.x.flatten(0, 1)
    )


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
