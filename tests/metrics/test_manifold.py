"""Precision and recall against the paper's equations, at ties, and at failures whose direction is known."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from quest.embedded import images as embedded
from quest.metrics import manifold


def random_features(rows: int, width: int, seed: int = 0) -> Tensor:
    """Correlated, off-centre features, as a network gives them."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator)
    return torch.randn(rows, width, generator=generator) @ mixing + 3


def digits(*labels: int) -> Tensor:
    """Real data with modes: 8×8 digits of the given labels as 64 numbers in [0, 1]."""
    images, targets = embedded.digits(size=8)
    return images.flatten(1).float()[torch.isin(targets, torch.tensor(labels or range(10)))] / 255


def precision_recall(real: Tensor, generated: Tensor, neighbours: int) -> tuple[float, float]:
    """The values alone."""
    precision, recall = manifold.precision_recall(real, generated, neighbours)
    return precision.value, recall.value


def brute_precision_recall(real: Tensor, generated: Tensor, neighbours: int) -> tuple[float, float]:
    """The paper's equations, a point at a time."""

    def covered(points: Tensor, manifold: Tensor) -> float:
        count = 0
        for point in points:
            for i, centre in enumerate(manifold):
                others = [(centre - other).norm().item() for j, other in enumerate(manifold) if j != i]
                if (point - centre).norm().item() <= sorted(others)[neighbours - 1]:
                    count += 1
                    break
        return count / len(points)

    return covered(generated, real), covered(real, generated)


@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_precision_recall_is_the_papers_definition(neighbours: int, monkeypatch: pytest.MonkeyPatch):
    real, generated = random_features(40, 3).double(), random_features(30, 3, seed=1).double()
    expected = brute_precision_recall(real, generated, neighbours)
    assert 0 < expected[0] < 1  # else the comparison would say little
    assert precision_recall(real, generated, neighbours) == expected
    for rows in (20, 40):
        monkeypatch.setattr("quest.metrics.manifold._ROWS", rows)
        assert precision_recall(real, generated, neighbours) == expected


def features_at_ties(kind: str) -> tuple[Tensor, Tensor]:
    """Real and generated rows, float32, whose distances tie: rows that come several times, or points of a lattice."""
    distinct = random_features(50, 64)
    if kind == "duplicates":
        return distinct.repeat(5, 1), distinct.repeat(6, 1)[torch.randperm(300)]
    if kind == "shared":
        return distinct, torch.cat([distinct[:25], random_features(15, 64, seed=1)])
    lattice = torch.cartesian_prod(*[torch.arange(4.0)] * 3) / 3 + 1e3 / 7
    return lattice[::2], lattice[1::2]


@pytest.mark.parametrize("kind", ["duplicates", "shared", "lattice"])
def test_ties_are_exact(kind: str):
    real, generated = features_at_ties(kind)
    if kind == "duplicates":
        assert precision_recall(real, generated, 3) == (1.0, 1.0)
    assert precision_recall(real, generated, 3) == exact_precision_recall(real, generated, 3)


def test_a_row_that_differs_by_less_than_products_can_tell_is_outside():
    distinct = random_features(50, 64).double()
    for far, expected in ((1e-7, (0.0, 0.0)), (0.0, (1.0, 1.0))):
        assert precision_recall(distinct.repeat(5, 1), (distinct + far).repeat(5, 1), 3) == expected


def exact_precision_recall(real: Tensor, generated: Tensor, neighbours: int) -> tuple[float, float]:
    """The paper's equations with squared distances by differences, all at once."""

    def squares(points: Tensor, others: Tensor) -> Tensor:
        return (points.double()[:, None] - others.double()).square().sum(2)

    def covered(points: Tensor, centres: Tensor) -> float:
        radii = squares(centres, centres).kthvalue(neighbours + 1).values  # the first is the row itself
        return (squares(points, centres) <= radii).any(1).double().mean().item()

    return covered(generated, real), covered(real, generated)


def test_many_duplicates_have_no_error():
    features = random_features(50, 64).repeat(20, 1)
    assert [found.error for found in manifold.precision_recall(features, features, 3)] == [0, 0]


def test_the_error_of_too_few_images_is_not_known():
    for found in manifold.precision_recall(random_features(40, 3), random_features(12, 3, seed=1), 3):
        assert found.error is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_that_are_not_finite_are_refused(bad: float):
    features = random_features(10, 4)
    features[3, 2] = bad
    for pair in ((features, random_features(10, 4)), (random_features(10, 4), features)):
        with pytest.raises(ValueError, match="NaN or infinite"):
            manifold.precision_recall(*pair, 3)


def test_precision_and_recall_of_the_same_set_are_one():
    features = random_features(100, 8)
    assert precision_recall(features, features, 3) == (1.0, 1.0)


def test_precision_and_recall_of_distant_sets_are_zero():
    features = random_features(100, 8)
    assert precision_recall(features, features + 1e4, 3) == (0.0, 0.0)


def test_mode_collapse_lowers_recall_and_not_precision():
    real, whole, collapsed = digits()[::2], digits()[1::2], digits(0, 1)[1::2]
    precision, recall = precision_recall(real, whole, 3)
    collapsed_precision, collapsed_recall = precision_recall(real, collapsed, 3)
    assert collapsed_recall < 0.5 * recall
    assert collapsed_precision > 0.9 * precision


def test_noise_lowers_precision():
    real, whole = digits()[::2], digits()[1::2]
    noisy = whole + 0.3 * torch.randn(whole.shape, generator=torch.Generator().manual_seed(0))
    assert precision_recall(real, noisy, 3)[0] < 0.5 * precision_recall(real, whole, 3)[0]


def test_precision_recall_needs_more_images_than_neighbours():
    with pytest.raises(ValueError, match="neighbours is 3, which needs more than the 3 images"):
        precision_recall(random_features(10, 2), random_features(3, 2), 3)
    with pytest.raises(ValueError, match="neighbours is 3, which needs more than the 3 reference images"):
        precision_recall(random_features(3, 2), random_features(10, 2), 3)


def test_blocks_are_held_and_no_second_set_of_features():
    """Peak memory beyond the features themselves, by the kernel's count, in a process of its own."""
    rows, width = 5_000, 512
    script = f"""
import resource, sys, torch
from quest.metrics import distances, manifold
torch.set_num_threads(1)
manifold._ROWS = 256
unit = 1 if sys.platform == "darwin" else 1024
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
sets = [torch.rand({rows}, {width}), torch.rand(300, {width})]
manifold.precision_recall(sets[1], sets[1], 3), distances.fit(sets[1])  # what libraries take once
before = peak()
manifold.precision_recall(sets[1], sets[0], 3)
distances.fit(sets[0])
print(peak() - before)
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(found.stdout) < rows * width * 8, "fewer than the features have in float64"
