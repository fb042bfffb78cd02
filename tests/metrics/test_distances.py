"""The distances against closed forms, other implementations, and failures whose direction is known."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from quest.embedded import images as embedded
from quest.metrics.distances import (
    FrechetDistance,
    distance_at_infinity,
    distance_of,
    fit,
    kernel_distance,
    psnr,
    split_scores,
)
from quest.metrics.statistics import ClassSums, Gaussian, Moments, Plan


def random_features(rows: int, width: int, seed: int = 0) -> Tensor:
    """Correlated, off-centre features, as a network gives them."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator)
    return torch.randn(rows, width, generator=generator) @ mixing + 3


def frechet_distance(reference: Gaussian, features: Tensor) -> float:
    """With the warning of too few images, as `quest measure` gives it."""
    distance = FrechetDistance(reference)
    distance.warn_if_rank_deficient(len(features))
    return distance(fit(features))


def digits(*labels: int) -> Tensor:
    """Real data with modes: 8×8 digits of the given labels as 64 numbers in [0, 1]."""
    images, targets = embedded.digits(size=8)
    return images.flatten(1).float()[torch.isin(targets, torch.tensor(labels or range(10)))] / 255


def class_sums(logits: Tensor, split_size: int, shuffled: bool = True) -> ClassSums:
    """The sums that images with ``logits`` leave, in their own or the shuffled order."""
    plan = Plan(len(logits), split_size)
    sums = ClassSums(plan.splits, logits.shape[1])
    sums.update(logits, (plan.places() if shuffled else torch.arange(len(logits))) // split_size)
    return sums


def inception_score(logits: Tensor, split_size: int, shuffled: bool = True) -> tuple[float, float | None]:
    """Mean and deviation over splits."""
    return split_scores(class_sums(logits, split_size, shuffled))[:2]


def grouped(features: Tensor, groups: int = 20) -> list[Moments]:
    """Moments of every ``groups``-th row."""
    result = []
    for group in range(groups):
        result.append(Moments(features.shape[1]))
        result[-1].update(features[group::groups])
    return result


def test_frechet_distance_is_the_closed_form_of_diagonal_gaussians():
    features = torch.randn(5000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # Whitened, so that mean 0 and unit covariance hold exactly and the distance can be written down.
    features = features - features.mean(0)
    features = features @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(features.T)).T)
    reference = Gaussian(
        torch.tensor([1.0, 2, 0, 0]).double(), torch.diag(torch.tensor([4.0, 9, 1, 0.25])).double(), 5000
    )
    # |μ|² + Σ (σ − 1)²
    assert frechet_distance(reference, features) == pytest.approx(5 + 1 + 4 + 0 + 0.25, rel=1e-9)


@pytest.mark.parametrize(("rows", "width"), [(500, 8), (300, 64), (40, 64)], ids=["tall", "wide", "rank-deficient"])
def test_frechet_distance_equals_its_definition_by_matrix_square_root(rows: int, width: int):
    real, generated = random_features(rows + 100, width), random_features(rows, width, seed=1)
    mean_1, cov_1 = real.double().mean(0).numpy(), torch.cov(real.double().T).numpy()
    mean_2, cov_2 = generated.double().mean(0).numpy(), torch.cov(generated.double().T).numpy()
    root = np.real(np.asarray(scipy.linalg.sqrtm(cov_1 @ cov_2)))
    expected = ((mean_1 - mean_2) ** 2).sum() + (cov_1 + cov_2 - 2 * root).trace()
    # SciPy's root of a singular product is itself only good to some digits.
    assert frechet_distance(fit(real), generated) == pytest.approx(expected, rel=1e-9 if rows > width else 1e-5)


@pytest.mark.parametrize(("rows", "width"), [(500, 8), (300, 64), (40, 64)], ids=["tall", "wide", "rank-deficient"])
def test_frechet_distance_equals_torchmetrics(rows: int, width: int):
    real, generated = random_features(rows + 100, width), random_features(rows, width, seed=1)
    given = nn.Identity()
    given.num_features = width  # pyright: ignore[reportArgumentType]
    metric = FrechetInceptionDistance(feature=given).set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    # Its eigenvalues of a singular product are rounding errors whose roots add up.
    expected = pytest.approx(metric.compute().item(), rel=1e-9 if rows > width else 1e-7)
    assert frechet_distance(fit(real), generated) == expected


def test_features_that_are_always_zero_do_not_blur_the_distance():
    real, generated = random_features(300, 16), random_features(300, 16, seed=1)
    dead = torch.zeros(300, 16)
    expected = frechet_distance(fit(real), generated)
    padded = frechet_distance(fit(torch.cat([dead, real], 1)), torch.cat([dead, generated], 1))
    assert padded == pytest.approx(expected, rel=1e-10)


def test_the_error_of_too_few_images_is_not_known():
    value, error = distance_of(FrechetDistance(fit(random_features(50, 2))), grouped(random_features(38, 2), 19))
    assert value > 0
    assert error is None


def test_fid_at_infinity_takes_most_of_the_bias_away():
    # The true distance to the reference is 0, and FID of N images is about proportional to 1/N above it.
    reference = FrechetDistance(Gaussian(torch.zeros(32).double(), torch.eye(32).double(), 10**6))
    groups = grouped(torch.randn(4000, 32, generator=torch.Generator().manual_seed(0)))
    plain = distance_of(reference, groups).value
    infinity = distance_at_infinity(reference, groups)
    assert plain > 0.05
    assert infinity is not None
    assert abs(infinity.value) < 0.1 * plain


def test_fid_at_infinity_needs_full_rank(caplog: pytest.LogCaptureFixture):
    reference = FrechetDistance(fit(random_features(500, 64)))
    assert distance_at_infinity(reference, grouped(random_features(60, 64, seed=1))) is None
    assert "60 images for 64 features: too few to extrapolate" in caplog.text


def test_kid_of_one_block_is_torchmetrics():
    real, generated = random_features(50, 8), random_features(50, 8, seed=1)
    metric = KernelInceptionDistance(feature=nn.Identity(), subsets=1, subset_size=50)
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    assert kernel_distance(real, generated, 50).value == pytest.approx(metric.compute()[0].item(), rel=1e-6)
    assert kernel_distance(real, generated, 5).error is None, "a quarter of a block of 5 has no two images"


def test_kid_is_unbiased_and_grows_with_noise():
    real, held_out = digits()[::2], digits()[1::2]
    noise = torch.randn(held_out.shape, generator=torch.Generator().manual_seed(0))
    estimates = [kernel_distance(real, held_out + scale * noise, 100) for scale in (0, 0.5, 1, 2)]
    assert [value for value, _ in estimates] == sorted(value for value, _ in estimates)
    first, error = estimates[0]
    assert error is not None
    assert abs(first) < 4 * error


def test_kid_uses_every_block_of_images_and_leaves_the_generator_alone():
    real, generated = random_features(100, 4), random_features(400, 4, seed=1)
    generated[350:] += 10
    state = torch.get_rng_state()
    assert kernel_distance(real, generated, 50).value > 2 * kernel_distance(real, generated[:350], 50).value
    assert torch.equal(torch.get_rng_state(), state)


def test_kid_of_sorted_real_images_is_that_of_shuffled_ones():
    real = torch.cat([random_features(200, 4), random_features(200, 4, seed=2) + 20])
    generated = real[torch.randperm(400, generator=torch.Generator().manual_seed(5))]
    value, error = kernel_distance(real, generated, 50)
    assert error is not None
    assert abs(value) < 4 * error


def test_kid_needs_a_block_of_images():
    with pytest.raises(ValueError, match="kid_block_size is 50, more than the 40 images"):
        kernel_distance(random_features(50, 2), random_features(40, 2), 50)
    with pytest.raises(ValueError, match="kid_block_size is 50, more than the 40 reference images"):
        kernel_distance(random_features(40, 2), random_features(50, 2), 50)


def test_frechet_distance_of_a_set_to_itself_is_zero():
    features = random_features(500, 16)
    assert frechet_distance(fit(features), features) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_does_not_depend_on_order_or_storage():
    reference, features = fit(random_features(400, 16)), random_features(400, 16, seed=1)
    shuffled = torch.cat([features[250:], features[:250]])
    with torch.inference_mode():
        inference = features.clone()
    value = frechet_distance(reference, features)
    assert frechet_distance(reference, shuffled) == pytest.approx(value, rel=1e-12)
    assert frechet_distance(reference, inference) == value
    assert frechet_distance(reference, features.double()) == value


def test_frechet_distance_grows_with_noise():
    real = digits()[::2]
    held_out = digits()[1::2]
    noise = torch.randn(held_out.shape, generator=torch.Generator().manual_seed(0))
    values = [frechet_distance(fit(real), held_out + scale * noise) for scale in (0, 0.05, 0.1, 0.2)]
    assert values == sorted(values)
    assert values[-1] > 2 * values[0]


def test_frechet_distance_warns_of_a_rank_deficient_covariance(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "quest.metrics.distances"):
        frechet_distance(fit(random_features(100, 16)), random_features(100, 16, seed=1))
        assert not caplog.records
        frechet_distance(fit(random_features(100, 16)), random_features(16, 16, seed=1))
    assert "16 images against 100 reference images for 16 features" in caplog.text


def test_frechet_distance_of_another_width_is_refused():
    with pytest.raises(ValueError, match="found features of width 3, the reference's are 4 wide"):
        frechet_distance(fit(random_features(10, 4)), random_features(10, 3))


def test_fit_is_mean_and_unbiased_covariance_in_double():
    gaussian = fit(torch.tensor([[0.0, 0.0], [2.0, 4.0]]))
    assert gaussian.mean.tolist() == [1, 2]
    assert gaussian.covariance.tolist() == [[2, 4], [4, 8]]
    assert gaussian.covariance.dtype == torch.float64
    assert fit(torch.tensor([[1.0], [3.0]])).covariance.tolist() == [[2]]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_that_are_not_finite_are_refused(bad: float):
    features = random_features(10, 4)
    features[3, 2] = bad
    for compute in (
        lambda: fit(features),
        lambda: frechet_distance(fit(random_features(10, 4)), features),
        lambda: inception_score(features, 2),
        lambda: kernel_distance(random_features(10, 4), features, 5),
    ):
        with pytest.raises(ValueError, match="NaN or infinite"):
            compute()


def test_one_row_has_no_covariance():
    with pytest.raises(ValueError, match="at least two rows"):
        fit(torch.zeros(1, 4))


def test_inception_score_of_undecided_logits_is_one():
    mean, deviation = inception_score(torch.zeros(100, 10), split_size=10)
    assert mean == pytest.approx(1)
    assert deviation == pytest.approx(0, abs=1e-12)


def test_inception_score_of_sure_and_balanced_logits_is_the_number_of_classes():
    logits = 50 * torch.eye(10).repeat(20, 1)
    mean, deviation = inception_score(logits, split_size=200)
    assert mean == pytest.approx(10, rel=1e-6)
    assert deviation is None


@pytest.mark.filterwarnings("ignore::UserWarning")  # torchmetrics', of a deviation over one split
def test_inception_score_is_its_definition():
    logits = 3 * torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    probabilities = logits.double().softmax(1)
    divergence = (probabilities * (probabilities / probabilities.mean(0)).log()).sum(1)
    assert inception_score(logits, 60)[0] == pytest.approx(divergence.mean().exp().item(), rel=1e-9)
    whole = InceptionScore(feature=nn.Identity(), splits=1)
    whole.update(logits)
    assert inception_score(logits, 60)[0] == pytest.approx(whole.compute()[0].item(), rel=1e-5)


def test_inception_score_is_repeatable_and_leaves_the_generator_alone():
    logits = 3 * torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    first = inception_score(logits, 10)
    torch.manual_seed(123)
    assert inception_score(logits, 10) == first
    torch.set_rng_state(state)
    inception_score(logits, 10)
    assert torch.equal(torch.get_rng_state(), state)


def test_inception_score_of_images_sorted_by_class_is_that_of_shuffled_ones():
    mean, deviation = inception_score(50 * torch.eye(4).repeat_interleave(100, 0), split_size=100)
    assert deviation is not None
    assert mean == pytest.approx(4, rel=0.02)  # 1 for groups in the order of the images


def test_the_unshuffled_variant_sees_one_class_a_split_where_images_are_sorted():
    mean, deviation = inception_score(50 * torch.eye(4).repeat_interleave(100, 0), split_size=100, shuffled=False)
    assert mean == pytest.approx(1)
    assert deviation == pytest.approx(0, abs=1e-9)


def test_splits_are_consecutive_groups_of_the_given_size():
    logits = 3 * torch.randn(25, 5, generator=torch.Generator().manual_seed(0))
    expected = [inception_score(part, 10, shuffled=False)[0] for part in logits.split(10)]
    assert inception_score(logits, 10, shuffled=False)[0] == pytest.approx(sum(expected) / 3, rel=1e-12)


def test_a_short_last_split_is_warned_about(caplog: pytest.LogCaptureFixture):
    inception_score(torch.zeros(23, 5), 10)
    assert "the last inception split has 3 images, the others 10" in caplog.text


def test_inception_score_survives_classes_without_any_probability():
    logits = torch.tensor([[2000.0, 0, -2000], [0, 2000, -2000]]).repeat(10, 1)
    assert inception_score(logits, 20)[0] == pytest.approx(2)


def test_inception_score_falls_when_classes_are_missing():
    whole, two_classes = 50 * torch.eye(10).repeat(20, 1), 50 * torch.eye(10)[:2].repeat(100, 1)
    assert inception_score(two_classes, 200)[0] == pytest.approx(2, rel=1e-6)
    assert inception_score(two_classes, 200)[0] < inception_score(whole, 200)[0]


@pytest.mark.parametrize(("mse", "expected"), [(1.0, 0.0), (0.01, 20.0), (1e-4, 40.0), (0.0, None)])
def test_psnr(mse: float, expected: float | None):
    assert psnr(mse) == pytest.approx(expected)
