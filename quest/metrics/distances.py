"""Distances between image sets, in float64, from statistics or features: pure functions, each with a standard error.

KID is torchmetrics' kernel and estimator. The others differ from what torchmetrics has, and are written here:
its FID takes the eigenvalues of a product that is not symmetric, which is slower and equal to ten digits
(tests/metrics/test_distances.py); its inception score cuts 64 images into 9 groups of 7 and one of 1, and knows no
groups of 5,000; sFID, FID at infinity, precision and recall it has not. Its default resizing for Inception
(antialiased) is not that of the papers either: see `quest.metrics.inception`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from quest.metrics.statistics import ClassSums, Gaussian, Moments, require_finite, total, without

_ROWS = 2048  # of a block of the matrix of distances, and of the features that are in float64 for it
_POINTS = 15  # set sizes that FID at infinity is fitted to
_EXTRAPOLATION_SEED = _BLOCK_SEED = 0
_log = logging.getLogger(__name__)


class Estimate(NamedTuple):
    """A number and its standard error; None where the images are too few to tell."""

    value: float
    error: float | None


def fit(features: Tensor) -> Gaussian:
    """Mean and unbiased covariance of features (N, D). Raises ValueError for fewer than two rows or non-finite ones."""
    features = _checked(features)
    moments = Moments(features.shape[1], features.device)
    moments.update(features)
    return moments.gaussian()


class FrechetDistance:
    """Fréchet distance to one reference (Heusel et al. 2017, eq. 6): FID of pooled features, sFID of spatial ones.

    The trace of (C₁C₂)^½ is the sum of the singular values of F₁ᵀF₂ where Cᵢ = FᵢFᵢᵀ, and these are the roots of the
    eigenvalues of a symmetric matrix: real, and cheaper than the eigenvalues of C₁C₂, which are the same numbers.
    """

    def __init__(self, reference: Gaussian, device: torch.device | str = "cpu"):
        self._mean, covariance = (part.to(device, torch.float64) for part in reference[:2])
        self._trace = covariance.trace()
        self._rows = reference.rows
        self._factor = _factor(covariance)

    def __call__(self, generated: Gaussian) -> float:
        """The distance; not below 0. Raises ValueError for features of another width."""
        if len(generated.mean) != len(self._mean):
            raise ValueError(
                f"found features of width {len(generated.mean)}, the reference's are {len(self._mean)} wide"
            )
        mean, covariance = (part.to(self._mean) for part in generated[:2])
        product = self._factor.T @ _factor(covariance)
        if product.shape[0] > product.shape[1]:
            product = product.T
        root = torch.linalg.eigvalsh(product @ product.T).clamp(min=0).sqrt().sum()
        distance = (mean - self._mean).square().sum() + self._trace + covariance.trace() - 2 * root
        return max(0.0, distance.item())  # a distance of equal sets comes out at −1e-12 as often as at 1e-12

    def warn_if_rank_deficient(self, images: int) -> None:
        """Say so when there are not more images than features: the distance then depends strongly on their number."""
        width = len(self._mean)
        if min(images, self._rows or images) <= width:
            _log.warning(
                "%d images against %s reference images for %d features: covariance is rank-deficient, "
                "compare only values from equally many images, or take more than %d",
                images,
                "?" if self._rows is None else self._rows,
                width,
                width,
            )


def jackknifed_distance(distance: FrechetDistance, groups: Sequence[Moments]) -> Estimate:
    """Distance of all images, and its delete-a-group jackknife error: √((G−1)/G Σ (θ₋g − θ̄)²) over G groups.

    It is the error from the generated images alone; the reference counts as given (Quenouille; Efron 1982, ch. 3).
    """
    whole = total(groups)
    value = distance(whole.gaussian())
    if len(groups) < 2 or any(whole.count - group.count < 2 for group in groups):
        return Estimate(value, None)
    left = torch.tensor([distance(without(whole, group)) for group in groups], dtype=torch.float64)
    return Estimate(value, math.sqrt((len(groups) - 1) / len(groups) * (left - left.mean()).square().sum().item()))


def distance_at_infinity(distance: FrechetDistance, groups: Sequence[Moments]) -> float | None:
    """FID of infinitely many images: the intercept of a line through FID against 1/N (Chong & Forsyth 2020, sec. 3).

    The line is fitted to up to 15 sizes from a tenth of the images to all, evenly spaced, each a random union of
    resampling groups; the paper draws its subsets image by image. Sizes without full rank (N ≤ D) lie on no line and
    are left out. None, with a warning, when fewer than three sizes remain.
    """
    width = len(groups[0].mean)
    least = max(1, len(groups) // 10)
    sizes = sorted({round(size) for size in torch.linspace(least, len(groups), _POINTS).tolist()})
    generator = torch.Generator().manual_seed(_EXTRAPOLATION_SEED)
    inverse, distances = [], []
    for size in sizes:
        chosen = torch.randperm(len(groups), generator=generator)[:size].tolist()
        subset = total([groups[group] for group in chosen])
        if subset.count > width:
            inverse.append(1 / subset.count)
            distances.append(distance(subset.gaussian()))
    if len(set(inverse)) < 3:
        images = sum(group.count for group in groups)
        _log.warning("%d images for %d features: too few to extrapolate FID to infinitely many", images, width)
        return None
    x, y = torch.tensor([inverse, distances], dtype=torch.float64)
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return (y.mean() - slope * x.mean()).item()


class SplitScores(NamedTuple):
    """Inception score over splits: mean, sample deviation of a split (None for one), error of the mean."""

    mean: float
    deviation: float | None
    error: float | None


def split_scores(sums: ClassSums) -> SplitScores:
    """Inception score (Salimans et al. 2016) averaged over splits, as ADM's evaluator does; a short last one counts."""
    scores = sums.scores()
    if len(scores) < 2:
        return SplitScores(scores.mean().item(), None, None)
    if sums.counts[-1] < sums.counts[0] / 2:
        _log.warning(
            "the last inception split has %d images, the others %d: its score is low for that alone; "
            "let evaluation.inception_split_size divide the images",
            int(sums.counts[-1]),
            int(sums.counts[0]),
        )
    deviation = scores.std().item()
    return SplitScores(scores.mean().item(), deviation, deviation / math.sqrt(len(scores)))


def kernel_distance(real: Tensor, generated: Tensor, size: int, device: torch.device | str = "cpu") -> Estimate:
    """KID (Bińkowski et al. 2018) of features (M, D) and (N, D): mean over blocks of ``size`` images of each set.

    Estimator and cubic kernel are torchmetrics'; it draws its subsets from the global generator with overlap, here
    they are consecutive blocks without, so that the error of the mean is their deviation over √blocks. Real
    blocks are used again when they are fewer. Both sets are shuffled first, in a fixed way, for they may be sorted.
    Raises ValueError for fewer than ``size`` rows.
    """
    from torchmetrics.image.kid import poly_mmd

    for name, rows in (("reference images", real), ("images", generated)):
        if len(rows) < size:
            raise ValueError(f"evaluation.kid_block_size is {size}, more than the {len(rows)} {name}")
    real, generated = _checked(real), _checked(generated)
    generator = torch.Generator().manual_seed(_BLOCK_SEED)
    real_blocks, blocks = (
        torch.randperm(len(rows), generator=generator).split(size)[: len(rows) // size] for rows in (real, generated)
    )
    values = []
    for number, block in enumerate(blocks):
        a, b = real[real_blocks[number % len(real_blocks)]], generated[block]
        values.append(poly_mmd(a.to(device, torch.float64), b.to(device, torch.float64)))
    together = torch.stack(values)
    error = together.std().item() / math.sqrt(len(values)) if len(values) > 1 else None
    return Estimate(together.mean().item(), error)


def precision_recall(
    real: Tensor, generated: Tensor, neighbours: int, device: torch.device | str = "cpu"
) -> tuple[Estimate, Estimate]:
    """Improved precision and recall of features (N, D) and (M, D) (Kynkäänniemi et al. 2019, eqs. 1-3).

    Precision is the share of generated rows within the manifold of the real ones, the union of balls that reach to
    each row's ``neighbours``-th nearest other row; recall is the same with the roles exchanged. Distances are
    float64; ADM's evaluator compares half-precision squares where those do not overflow.
    The errors are those of the bootstrap over the rows whose share is taken, √(p(1−p)/n), manifolds held fixed.
    Raises ValueError when a set has no ``neighbours`` other rows.
    """
    for name, rows in (("reference images", real), ("images", generated)):
        if len(rows) <= neighbours:
            raise ValueError(f"evaluation.neighbours is {neighbours}, which needs more than the {len(rows)} {name}")
    real, generated = (_checked(rows).to(device) for rows in (real, generated))
    real_radii, radii = _radii(real, neighbours), _radii(generated, neighbours)
    in_real, in_generated = (torch.zeros(len(rows), dtype=torch.bool, device=device) for rows in (generated, real))
    for rows in _spans(generated):
        for others in _spans(real):
            between = _distances(generated[rows], real[others])
            in_real[rows] |= (between <= real_radii[others]).any(1)
            in_generated[others] |= (between <= radii[rows, None]).any(0)
    return _share(in_real), _share(in_generated)


def psnr(mse: float) -> float | None:
    """Peak signal-to-noise ratio in dB of a mean squared error on the [0, 1] scale; None for 0 (infinite)."""
    return None if mse == 0 else -10 * math.log10(mse)


def _factor(covariance: Tensor) -> Tensor:
    """F (D, r) with FFᵀ = ``covariance`` of rank r."""
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if not failed:
        return factor
    # Singular: fewer images than features, or features that are always 0. Only directions with any variance are
    # kept: rounding leaves 1e-16 in the others, and the square root would make 1e-8 of that.
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values[-1].clamp(min=0) * len(values) * torch.finfo(torch.float64).eps
    return vectors[:, kept] * values[kept].sqrt()


def _radii(points: Tensor, neighbours: int) -> Tensor:
    """Distance (N,) float64 of each row of ``points`` (N, D) to its ``neighbours``-th nearest other row."""
    count = neighbours + 1  # the nearest row is the row itself, at distance 0
    nearest = torch.full((len(points), count), math.inf, dtype=torch.float64, device=points.device)

    def keep(rows: slice, between: Tensor) -> None:
        closest = between.topk(min(count, between.shape[1]), largest=False).values
        nearest[rows] = torch.cat([nearest[rows], closest], 1).topk(count, largest=False).values

    for rows in _spans(points):
        for others in _spans(points):
            if rows.start <= others.start:  # a distance counts for both of its rows
                between = _distances(points[rows], points[others])
                keep(rows, between)
                if rows != others:
                    keep(others, between.T)
    return nearest.amax(1)


def _spans(points: Tensor) -> list[slice]:
    """The rows of ``points`` in consecutive blocks."""
    return [slice(first, min(first + _ROWS, len(points))) for first in range(0, len(points), _ROWS)]


def _distances(points: Tensor, others: Tensor) -> Tensor:
    """Euclidean distances (N, M) of rows (N, D) and (M, D), float64."""
    return torch.cdist(points.double(), others.double())


def _share(inside: Tensor) -> Estimate:
    """Share of True in ``inside`` (N,)."""
    share = inside.double().mean().item()
    return Estimate(share, math.sqrt(share * (1 - share) / len(inside)))


def _checked(features: Tensor) -> Tensor:
    """features (N, D), for use outside inference mode."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"found features of shape {tuple(features.shape)}, expected (N, D) with at least two rows")
    require_finite(features)
    return features
