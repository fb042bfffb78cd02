"""The distances against closed forms, other implementations, and failures whose direction is known."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn
from torchmetrics.image.inception import InceptionScore

from quest.metrics.distances import Gaussian, fit, frechet_distance, inception_score, precision_recall, psnr
from quest.models import embedded


def random_features(rows: int, width: int, seed: int = 0) -> Tensor:
    """Correlated, off-centre features, as a network gives them."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator)
    return torch.randn(rows, width, generator=generator) @ mixing + 3


def digits(*labels: int) -> Tensor:
    """Real data with modes: 8×8 digits of the given labels as 64 numbers in [0, 1]."""
    images, targets = embedded.digits(size=8)
    return images.flatten(1).float()[torch.isin(targets, torch.tensor(labels or range(10)))] / 255


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
    assert frechet_distance(fit(real), generated) == pytest.approx(expected, rel=1e-5)


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
        lambda: precision_recall(features, random_features(10, 4), 3),
    ):
        with pytest.raises(ValueError, match="NaN or infinite"):
            compute()


def test_one_row_has_no_covariance():
    with pytest.raises(ValueError, match="at least two rows"):
        fit(torch.zeros(1, 4))


def test_inception_score_of_undecided_logits_is_one():
    mean, deviation = inception_score(torch.zeros(100, 10), splits=10)
    assert mean == pytest.approx(1)
    assert deviation == pytest.approx(0, abs=1e-12)


def test_inception_score_of_sure_and_balanced_logits_is_the_number_of_classes():
    logits = 50 * torch.eye(10).repeat(20, 1)
    mean, deviation = inception_score(logits, splits=1)
    assert mean == pytest.approx(10, rel=1e-6)
    assert deviation is None


@pytest.mark.filterwarnings("ignore::UserWarning")  # torchmetrics', of a deviation over one split
def test_inception_score_is_its_definition():
    logits = 3 * torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    probabilities = logits.double().softmax(1)
    divergence = (probabilities * (probabilities / probabilities.mean(0)).log()).sum(1)
    assert inception_score(logits, 1)[0] == pytest.approx(divergence.mean().exp().item(), rel=1e-9)
    whole = InceptionScore(feature=nn.Identity(), splits=1)
    whole.update(logits)
    assert inception_score(logits, 1)[0] == pytest.approx(whole.compute()[0].item(), rel=1e-5)


def test_inception_score_is_repeatable_and_leaves_the_generator_alone():
    logits = 3 * torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    first = inception_score(logits, 6)
    torch.manual_seed(123)
    assert inception_score(logits, 6) == first
    torch.set_rng_state(state)
    inception_score(logits, 6)
    assert torch.equal(torch.get_rng_state(), state)


def test_inception_score_of_images_sorted_by_class_is_that_of_shuffled_ones():
    mean, deviation = inception_score(50 * torch.eye(4).repeat_interleave(100, 0), splits=4)
    assert deviation is not None
    assert mean == pytest.approx(4, rel=0.02)  # 1 for groups in the order of the images


def test_inception_splits_are_as_even_as_can_be():
    # 66 balanced images in 8 groups of 8 or 9; a group of one image would have a score of 1.
    mean, _ = inception_score(50 * torch.eye(2).repeat(33, 1), splits=8)
    assert mean > 1.8


def test_inception_score_survives_classes_without_any_probability():
    logits = torch.tensor([[2000.0, 0, -2000], [0, 2000, -2000]]).repeat(10, 1)
    assert inception_score(logits, 1)[0] == pytest.approx(2)


def test_inception_score_falls_when_classes_are_missing():
    whole, two_classes = 50 * torch.eye(10).repeat(20, 1), 50 * torch.eye(10)[:2].repeat(100, 1)
    assert inception_score(two_classes, 1)[0] == pytest.approx(2, rel=1e-6)
    assert inception_score(two_classes, 1)[0] < inception_score(whole, 1)[0]


def test_inception_score_needs_an_image_a_split():
    with pytest.raises(ValueError, match=r"inception_splits is 10, more than the 5 images"):
        inception_score(torch.zeros(5, 10), 10)


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
    monkeypatch.setattr("quest.metrics.distances._CHUNK", 7)
    assert precision_recall(real, generated, neighbours) == expected


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


@pytest.mark.parametrize(("mse", "expected"), [(1.0, 0.0), (0.01, 20.0), (1e-4, 40.0), (0.0, None)])
def test_psnr(mse: float, expected: float | None):
    assert psnr(mse) == pytest.approx(expected)
