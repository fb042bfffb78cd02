"""Standard errors against the spread of sets that are really drawn again, the reference held fixed."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from quest.config.evaluation import EvaluationSettings
from quest.metrics import evaluation
from quest.metrics.extractor import Features
from quest.metrics.reference import Reference
from quest.metrics.resampling import SUBSETS, members, standard_error
from quest.metrics.statistics import Accumulator, Gaussian, Moments, Plan

METRICS = ("fid", "fid_infinity", "sfid", "is", "kid", "precision", "recall")
IMAGES, SETS, WIDTH = 600, 100, 8
SETTINGS = EvaluationSettings(images=IMAGES, inception_split_size=200, kid_block_size=100)


def seen(images: int, shift: float, scale: float, generator: torch.Generator) -> Features:
    """Features of images drawn from a Gaussian; the spatial ones have heavier tails."""
    pooled = torch.randn(images, WIDTH, generator=generator) * scale + shift
    return Features(pooled, pooled[:, :4] ** 2, 2 * pooled[:, :5])


def fit(features: Tensor) -> Gaussian:
    moments = Moments(features.shape[1])
    moments.update(features)
    return moments.gaussian()


def redrawn(shift: float, scale: float) -> list[dict[str, Any]]:
    """The metrics of SETS sets of images against one reference."""
    generator = torch.Generator().manual_seed(0)
    real = seen(400, 0, 1, generator)
    fits = {"pooled": fit(real.pooled), "spatial": fit(real.spatial)}
    reference = Reference(real.pooled, fits, 400, 8, "normal", "none", "x" * 64, "r" * 64)
    rows = []
    for _ in range(SETS):
        accumulator = Accumulator(Plan(IMAGES, SETTINGS.inception_split_size), "x" * 64)
        accumulator.update(0, seen(IMAGES, shift, scale, generator))
        rows.append(evaluation.numbers(accumulator, reference, SETTINGS, "cpu"))
    return rows


@pytest.mark.parametrize(("shift", "scale"), [(0.3, 0.9), (0.0, 1.0)], ids=["different", "equal"])
def test_every_error_is_the_spread_over_redrawn_sets(shift: float, scale: float):
    rows = redrawn(shift, scale)
    ratios = {}
    for name in METRICS:
        values, errors = (torch.tensor([row[key] for row in rows]) for key in (name, f"{name}_se"))
        ratios[name] = (errors.mean() / values.std()).item()
    assert all(0.8 < ratio < 1.2 for ratio in ratios.values()), ratios


def test_a_mean_has_the_error_of_a_mean():
    values = torch.randn(1000, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors = torch.tensor([standard_error([row[list(part)].mean().item() for part in SUBSETS]) for row in values])
    assert errors.square().mean().sqrt().item() == pytest.approx(20**-0.5, rel=0.05)


def test_a_metric_that_never_changes_has_no_error():
    assert standard_error([0.5] * len(SUBSETS)) == 0


def test_halves_and_quarters_make_the_set_and_cuts_are_balanced():
    halves, quarters = SUBSETS[:30], SUBSETS[30:]
    for parts in (*batched(halves, 2), *batched(quarters, 4)):
        assert sorted(itertools.chain(*parts)) == list(range(20))
    for one, other in itertools.combinations(batched(quarters, 4), 2):
        assert {len(set(a) & set(b)) for a in one for b in other} == {1, 2}


def batched(parts: tuple[tuple[int, ...], ...], count: int) -> list[tuple[tuple[int, ...], ...]]:
    return [parts[first : first + count] for first in range(0, len(parts), count)]


def test_members_are_the_rows_of_a_subsets_groups():
    found = members(45)
    assert found.shape == (50, 45)
    assert [row for row in range(45) if found[0, row]] == [row for row in range(45) if row % 20 in SUBSETS[0]]
