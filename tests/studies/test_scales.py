"""Drift of scales: ratios to the mean over sets, every quantizer under one role."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from quest.studies import scales
from quest.studies.subject import Subject


def test_ratios_are_to_the_mean_over_sets(subject: Subject):
    network = subject.quantized(subject.bits, 2)
    site: Any = network.layers()["mid_block.attentions.0.to_q"].input_quantizer
    site.scale.data[0], site.scale.data[1] = 1.0, 3.0
    ratios = scales.drift(network)
    assert [0.5, 1.5] in [pytest.approx(row) for row in ratios["attention_q"].tolist()]
    assert sum(len(of_role) for of_role in ratios.values()) == len(network.sites())
    assert {"operand q", "operand k", "operand v", "operand probabilities"} <= set(ratios)
    assert all(of_role.mean(1).tolist() == pytest.approx([1] * len(of_role)) for of_role in ratios.values())


def test_rows_of_the_checkpoints_with_several_sets(subject: Subject):
    rows = scales.measure(subject)
    assert list(dict.fromkeys(row["method"] for row in rows)) == ["quest", "nearest"]  # q-diffusion has one set
    timesteps = subject.model.sampler(subject.settings.sampler).timesteps.tolist()
    assert len(scales.chart("tiny", rows).axes) >= len({row["role"] for row in rows})
    spans = list(dict.fromkeys((row["first_timestep"], row["last_timestep"]) for row in rows))
    assert spans == [tuple(timesteps[:2]), tuple(timesteps[2:])]


def test_one_set_has_no_drift(subject: Subject):
    with pytest.raises(ValueError, match="there is no drift to show"):
        scales.measure(replace(subject, files={**subject.files, "checkpoints": subject.files["checkpoints"][2:]}))
