"""Streaming statistics: what they are equal to, and that shards, their order and batches do not matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from quest.config.evaluation import EvaluationSettings
from quest.metrics import evaluation
from quest.metrics.extractor import Extractor, Features
from quest.metrics.reference import Reference, reduce
from quest.metrics.statistics import Accumulator, Moments, Plan, total

IMAGES = 203


class Pixels(Extractor):
    """Features that are simply the pixels of 4×4 images: digits without a network."""

    name, sha256, resize, channels, batch_size, device = "pixels", "p" * 64, "none", 1, 64, "cpu"

    def _forward(self, images: Tensor) -> Features:
        flat = images.flatten(1).float() / 255
        return Features(flat, flat[:, :6] * 2, flat[:, :10] * 5)


def pictures(count: int = IMAGES, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, 1, 4, 4), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


@pytest.fixture(scope="module")
def real() -> Reference:
    return reduce([pictures(300, seed=9)], 300, Pixels(), "pictures")


SETTINGS = EvaluationSettings(images=IMAGES, inception_split_size=50, kid_block_size=50)


def accumulate(images: Tensor, spans: list[range]) -> Accumulator:
    accumulator = evaluation.start(SETTINGS, len(images), Pixels())
    for span in spans:
        evaluation.take_in(accumulator, span.start, images[span.start : span.stop], Pixels())
    return accumulator


def cut(size: int, count: int = IMAGES) -> list[range]:
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def test_moments_are_numpys_mean_and_covariance():
    rows = torch.randn(500, 7, generator=torch.Generator().manual_seed(0)) * 3 + 100
    moments = Moments(7)
    for part in rows.split(33):
        moments.update(part)
    mean, covariance, count = moments.gaussian()
    assert count == 500
    assert (mean.dtype, covariance.dtype) == (torch.float64, torch.float64)
    np.testing.assert_allclose(mean.numpy(), rows.double().numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance.numpy(), np.cov(rows.double().numpy(), rowvar=False), rtol=1e-11, atol=1e-12)


def test_moments_of_one_call_are_those_of_many(monkeypatch: pytest.MonkeyPatch):
    rows = torch.randn(300, 7, generator=torch.Generator().manual_seed(0)) + 10
    found = []
    for block in (1024, 64, 1):
        monkeypatch.setattr("quest.metrics.statistics._ROWS", block)
        moments = Moments(7)
        moments.update(rows)
        found.append(moments.gaussian())
        assert torch.equal(found[-1].covariance, found[-1].covariance.T)
    for each in found[1:]:
        torch.testing.assert_close(each.mean, found[0].mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(each.covariance, found[0].covariance, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("width", [1, 128, 300])
def test_a_covariance_is_whole_at_every_width(width: int):
    rows = torch.randn(50, width, generator=torch.Generator().manual_seed(0))
    whole = Moments(width)
    whole.update(rows)
    covariance = np.cov(rows.double().numpy(), rowvar=False).reshape(width, width)
    np.testing.assert_allclose(whole.gaussian().covariance.numpy(), covariance, rtol=1e-11, atol=1e-12)


def test_moments_keep_their_digits_far_from_the_origin():
    # Sums of squares would be 1e16 here, and a variance of 1 below their last digit.
    rows = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e8
    moments = Moments(2)
    for part in rows.split(100):
        moments.update(part)
    np.testing.assert_allclose(
        moments.gaussian().covariance.numpy(), np.cov(rows.numpy().T - 1e8), rtol=1e-6, atol=1e-7
    )


def test_merged_moments_are_those_of_all_rows_in_any_order():
    rows = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    parts = []
    for part in rows.split([3, 0, 90, 107]):
        parts.append(Moments(5))
        parts[-1].update(part)
    whole = Moments(5)
    whole.update(rows)
    for order in (parts, parts[::-1]):
        merged = total(order)
        assert merged.count == 200
        for found, expected in zip(merged.gaussian()[:2], whole.gaussian()[:2], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert parts[0].count == 3, "the parts are left as they were"


def test_moments_refuse_what_they_cannot_take():
    moments = Moments(3)
    with pytest.raises(ValueError, match=r"found features of shape \(2, 4\), expected \(N, 3\)"):
        moments.update(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="NaN or infinite"):
        moments.update(torch.tensor([[0.0, torch.nan, 0]]))
    with pytest.raises(ValueError, match="at least two rows of features, found 0"):
        moments.gaussian()
    with pytest.raises(ValueError, match="cannot merge moments of width 4"):
        moments.merge(Moments(4))


def test_numbers_do_not_depend_on_shards_or_batches(real: Reference, monkeypatch: pytest.MonkeyPatch):
    images = pictures()
    expected = evaluation.numbers(accumulate(images, cut(IMAGES)), real, SETTINGS, "cpu")
    assert None not in expected.values()
    for size in (1, 7, 64, 202):
        found = evaluation.numbers(accumulate(images, cut(size)), real, SETTINGS, "cpu")
        assert found == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr("quest.metrics.evaluation.CHUNK", 11)
    found = evaluation.numbers(accumulate(images, cut(100)), real, SETTINGS, "cpu")
    assert found == pytest.approx(expected, rel=1e-9)


def test_shards_reduced_apart_merge_to_the_same_numbers_in_any_order(real: Reference):
    images = pictures()
    expected = evaluation.numbers(accumulate(images, cut(IMAGES)), real, SETTINGS, "cpu")
    shards = cut(60)
    for order in (shards, shards[::-1], shards[2:] + shards[:2]):
        merged = evaluation.start(SETTINGS, IMAGES, Pixels())
        for shard in order:
            merged.merge(accumulate(images, [shard]))
        merged.merge(evaluation.start(SETTINGS, IMAGES, Pixels()))  # one that saw nothing
        assert evaluation.numbers(merged, real, SETTINGS, "cpu") == pytest.approx(expected, rel=1e-9)


def test_order_of_images_changes_unshuffled_is_and_nothing_of_fid(real: Reference):
    images = pictures()
    images = images[Pixels()(images).logits.argmax(1).argsort()]  # as a set that is sorted by class
    shuffled = images[torch.randperm(IMAGES, generator=torch.Generator().manual_seed(1))]
    first, second = (
        evaluation.numbers(accumulate(each, cut(IMAGES)), real, SETTINGS, "cpu") for each in (images, shuffled)
    )
    for name in ("fid", "sfid", "precision", "recall"):
        assert second[name] == pytest.approx(first[name], rel=1e-9)
    assert second["is"] == pytest.approx(first["is"], rel=0.1)
    assert first["is_unshuffled"] < 0.95 * first["is"]
    assert second["is_unshuffled"] > 1.03 * first["is_unshuffled"]


def test_an_image_counts_once():
    images = pictures()
    accumulator = accumulate(images, [range(0, 50)])
    with pytest.raises(ValueError, match="images 40 to 59 were taken in before"):
        evaluation.take_in(accumulator, 40, images[40:60], Pixels())
    with pytest.raises(ValueError, match="images 200 to 219 of a set of 203"):
        evaluation.take_in(accumulator, 200, images[:20], Pixels())
    with pytest.raises(ValueError, match="share images"):
        accumulator.merge(accumulate(images, [range(49, 60)]))
    with pytest.raises(ValueError, match="found 50 of 203 images; all are needed"):
        accumulator.features()
    assert accumulator.count == 50


def test_statistics_of_other_plans_or_extractors_do_not_merge():
    accumulator = accumulate(pictures(), [range(0, 50)])
    for other in (Accumulator(Plan(IMAGES, 51), "p" * 64), Accumulator(Plan(IMAGES, 50), "q" * 64)):
        with pytest.raises(ValueError, match="cannot merge statistics of"):
            accumulator.merge(other)


def test_a_reference_of_another_extractor_is_refused(real: Reference):
    stranger = Accumulator(Plan(IMAGES, 50), "q" * 64)
    with pytest.raises(ValueError, match="the reference was made with extractor pppp"):
        evaluation.numbers(stranger, real, SETTINGS, "cpu")


def test_features_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch, real: Reference):
    monkeypatch.setattr("quest.metrics.statistics.FEATURE_IMAGES", 60)
    images = pictures()
    accumulator = accumulate(images, cut(64))
    kept = accumulator.features()
    chosen = Plan(IMAGES, 50).places().argsort()[:60]
    assert torch.equal(kept, images[chosen].flatten(1).float() / 255)
    evaluation.numbers(accumulator, real, SETTINGS, "cpu")


def test_a_reference_keeps_a_fixed_choice_of_its_features(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("quest.metrics.reference.MANIFOLD_IMAGES", 40)
    images = pictures(300, seed=9)
    whole = reduce([images], 300, Pixels(), "pictures")
    parts = reduce(images.split(70), 300, Pixels(), "pictures")
    assert whole.pooled.shape == (40, 16)
    assert torch.equal(parts.pooled, whole.pooled)
    assert whole.images == 300
    torch.testing.assert_close(
        parts.gaussians["pooled"].covariance, whole.gaussians["pooled"].covariance, rtol=1e-11, atol=1e-12
    )


@pytest.mark.parametrize(("images", "groups"), [(2, 1), (3, 1), (12, 6), (40, 20), (50_000, 20)])
def test_every_group_has_two_images(images: int, groups: int):
    plan = Plan(images, 10)
    assert plan.groups == groups
    assert torch.bincount(plan.places() % plan.groups).min() >= 2
