"""Sensitivity: at 8 bits there is nothing to be sensitive to, and only the family's own inputs are lowered."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from quest.learning import finetuning
from quest.quantization.roles import Role
from quest.quantization.rounding import Fixed
from quest.studies import sensitivity
from quest.studies.sensitivity import FAMILIES, even, lowered
from quest.studies.subject import Subject


@pytest.fixture
def subject(subject: Subject) -> Subject:
    """With the learned rounding of 8 bits, as the study is given it."""
    return replace(subject, files={**subject.files, "reconstruction": subject.files["reconstruction of 8 bits"]})


ABSENT = ("feed-forward", "other conditions")  # from the tiny model
PRESENT = [family for family in FAMILIES if family not in ABSENT]


@pytest.mark.parametrize("family", PRESENT)
def test_at_8_bits_a_family_is_the_baseline(subject: Subject, family: str):
    data = subject.calibration.samples(2)
    with torch.no_grad():
        one, other = (finetuning.predict(lowered(subject, name, 8), data, torch.arange(2)) for name in (None, family))
    assert torch.equal(one, other)


@pytest.mark.parametrize("family", PRESENT)
def test_only_the_inputs_of_the_family_are_lowered(subject: Subject, family: str):
    for layer in lowered(even(subject), family, 4).layers().values():
        site: Any = layer.input_quantizer
        assert site.grid.bits == (4 if layer.role in FAMILIES[family] else 8)
        assert site.scale[0].numel() == 1  # shared alike at 4 bits and at 8
        assert layer.weight_parts()[0][0].grid.bits == 8
        assert isinstance(layer.weight_parts()[0][0].rounding, Fixed)  # learned


def test_every_role_but_the_edges_is_in_one_family():
    assert sorted(role for roles in FAMILIES.values() for role in roles) == sorted(set(Role) - {Role.FIRST, Role.LAST})


def test_rows_and_chart(subject: Subject):
    rows = sensitivity.measure(subject)
    assert list(dict.fromkeys(row["family"] for row in rows)) == PRESENT
    at_eight = [row["mse"] for row in rows if row["activation_bits"] == 8]
    assert len(set(at_eight)) == 1
    for family in PRESENT:
        mse = {row["activation_bits"]: row["mse"] for row in rows if row["family"] == family}
        assert list(mse) == [8, 6, 5, 4]
        assert mse[4] != mse[8]
    assert len(sensitivity.chart("tiny", rows).axes[0].containers) == len(PRESENT)
