"""Distances between image sets, in float64, from features that were extracted before: pure functions of tensors.

FID and sFID are torchmetrics' own computation, given features instead of images. Its inception score is not used: it
cuts 64 images into 9 groups of 7 and one of 1, whose score is always 1.
"""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

_CHUNK = 4096  # rows of a distance matrix in memory at once
_log = logging.getLogger(__name__)


class Gaussian(NamedTuple):
    """What the Fréchet distance fits to features: mean (D,) and covariance (D, D), float64, of ``rows`` rows."""

    mean: Tensor
    covariance: Tensor
    rows: int


class _Given(nn.Identity):
    """Stands where torchmetrics expects a network: the features are given, so it returns them."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features


def fit(features: Tensor) -> Gaussian:
    """Mean and unbiased covariance of features (N, D). Raises ValueError for fewer than two rows or non-finite ones."""
    features = _checked(features).double()
    return Gaussian(features.mean(0), torch.cov(features.T, correction=1).reshape(features.shape[1], -1), len(features))


def frechet_distance(reference: Gaussian, features: Tensor) -> float:
    """Fréchet distance of features (N, D) to ``reference`` (Heusel et al. 2017, eq. 6): FID of pooled features.

    On spatial features it is sFID (Nash et al. 2021). Warns when N is not above D, for then the covariance is
    singular and the distance depends strongly on N. Raises ValueError for another D or non-finite features.
    """
    features = _checked(features)
    count, width = features.shape
    if width != len(reference.mean):
        raise ValueError(f"found features of width {width}, the reference's are {len(reference.mean)} wide")
    if min(count, reference.rows) <= width:
        _log.warning(
            "%d images against %d reference images for %d features: covariance is rank-deficient, "
            "compare only values from equally many images",
            count,
            reference.rows,
            width,
        )
    metric = FrechetInceptionDistance(feature=_Given(width), reset_real_features=False)
    # torchmetrics keeps sums of features and of their outer products; the reference is stored as mean and covariance.
    metric.real_features_num_samples = torch.tensor(reference.rows)
    metric.real_features_sum = reference.mean * reference.rows
    metric.real_features_cov_sum = reference.covariance * (reference.rows - 1) + reference.rows * torch.outer(
        reference.mean, reference.mean
    )
    metric.update(features.double(), real=False)
    return max(0.0, metric.compute().item())  # a distance of equal sets comes out at −1e-12 as often as at 1e-12


def inception_score(logits: Tensor, splits: int) -> tuple[float, float | None]:
    """exp(E KL(p(y|x) ‖ p(y))) of class logits (N, K) (Salimans et al. 2016).

    Returns its mean and standard deviation over ``splits`` groups, into which a fixed permutation deals the images.
    With one split there is no deviation: None.
    Raises ValueError for fewer images than splits.
    """
    logits = _checked(logits)
    if len(logits) < splits:
        raise ValueError(f"evaluation.inception_splits is {splits}, more than the {len(logits)} images")
    # Images may come sorted by class, and then groups of neighbours would see few classes each.
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(0))
    scores = []
    for group in logits.double().log_softmax(1)[order].tensor_split(splits):
        marginal = group.logsumexp(0) - math.log(len(group))
        scores.append((group.exp() * (group - marginal)).sum(1).mean().exp())
    together = torch.stack(scores)
    return together.mean().item(), together.std().item() if splits > 1 else None


def precision_recall(
    real: Tensor, generated: Tensor, neighbours: int, device: torch.device | str = "cpu"
) -> tuple[float, float]:
    """Improved precision and recall of features (N, D) and (M, D) (Kynkäänniemi et al. 2019, eqs. 1-3).

    Precision is the share of generated rows within the manifold of the real ones, the union of balls that reach to
    each row's ``neighbours``-th nearest other row; recall is the same with the roles exchanged.
    Raises ValueError when a set has no ``neighbours`` other rows.
    """
    for name, rows in (("reference images", real), ("images", generated)):
        if len(rows) <= neighbours:
            raise ValueError(f"evaluation.neighbours is {neighbours}, which needs more than the {len(rows)} {name}")
    real, generated = (_checked(rows).double().to(device) for rows in (real, generated))
    return _covered(generated, real, neighbours), _covered(real, generated, neighbours)


def psnr(mse: float) -> float | None:
    """Peak signal-to-noise ratio in dB of a mean squared error on the [0, 1] scale; None for 0 (infinite)."""
    return None if mse == 0 else -10 * math.log10(mse)


def _covered(points: Tensor, manifold: Tensor, neighbours: int) -> float:
    """Share of ``points`` in the union of the nearest-neighbour balls around the rows of ``manifold``."""
    # The nearest row is the row itself, at distance 0.
    radii = torch.cat(
        [torch.cdist(rows, manifold).kthvalue(neighbours + 1, dim=1).values for rows in manifold.split(_CHUNK)]
    )
    inside = [(torch.cdist(rows, manifold) <= radii).any(1) for rows in points.split(_CHUNK)]
    return torch.cat(inside).double().mean().item()


def _checked(features: Tensor) -> Tensor:
    """features (N, D), for use outside inference mode."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"found features of shape {tuple(features.shape)}, expected (N, D) with at least two rows")
    if not features.isfinite().all():
        raise ValueError("the feature extractor gave NaN or infinite features")
    return features
