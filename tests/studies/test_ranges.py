"""Ranges: of the full-precision network, by step, and needing nothing but the model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quest.studies import distributions, ranges
from quest.studies.distributions import FINETUNED, FULL
from quest.studies.subject import Subject


def test_ranges_are_full_precisions_and_need_the_model_alone(subject: Subject):
    alone = replace(subject, files={"model": subject.files["model"]})
    rows = ranges.measure(alone)
    full = [row for row in distributions.measure(subject) if row["weights"] == FULL]
    assert [{key: value for key, value in row.items() if key != "weights"} for row in full] == rows


def test_before_and_after_finetuning_without_learned_rounding(subject: Subject):
    few = replace(subject, files={name: subject.files[name] for name in ("model", "checkpoint")})
    rows, every = distributions.measure(few), distributions.measure(subject)
    assert rows == [row for row in every if row["weights"] in (FULL, FINETUNED)]
    (panel, *_) = distributions.chart("tiny", rows).axes
    assert [line.get_label() for line in panel.lines] == [FINETUNED, FULL]


def test_the_widest_layers_are_drawn_by_step():
    def row(layer: str, timestep: int, width: float) -> dict[str, object]:
        return {"layer": layer, "timestep": timestep, "min": 0.0, "max": width, "low_999": 0.1, "high_999": width - 0.1}

    layers = [f"down_blocks.{index}.conv_in" for index in range(7)]
    rows = [row(layer, step, 1.0 + index + step / 10) for step in (9, 1) for index, layer in enumerate(layers)]
    over, steps = ranges.chart("tiny", rows).axes
    assert np.asarray(over.lines[0].get_ydata()) == pytest.approx([1.9 + index for index in range(7)])
    assert np.asarray(over.lines[1].get_ydata()) == pytest.approx([1.7 + index for index in range(7)])
    assert [line.get_label() for line in steps.lines] == [f"down{index} in" for index in (6, 5, 4, 3, 2)]
    assert np.asarray(steps.lines[0].get_ydata()) == pytest.approx([7.9, 7.1])
