"""Distances between image sets, in float64, from statistics or features: pure functions, each with a standard error.

KID is torchmetrics' kernel and estimator. The others differ from what torchmetrics has, and are written here:
its FID takes the eigenvalues of a product that is not symmetric, which is slower and equal to ten digits
(tests/metrics/test_distances.py); its inception score cuts 64 images into 9 groups of 7 and one of 1, and knows no
groups of 5,000; sFID and FID at infinity it has not, nor precision and recall (`quest.metrics.manifold`). Its default
resizing for Inception (antialiased) is not that of the papers either: see `quest.metrics.inception`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from quest.metrics.resampling import SUBSETS, Estimate, members, standard_error
from quest.metrics.statistics import GROUPS, ClassSums, Gaussian, Moments, require_finite, total

_POINTS = 15  # set sizes that FID at infinity is fitted to
_EXTRAPOLATION_SEED = _BLOCK_SEED = 0
_log = logging.getLogger(__name__)


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


def distance_of(distance: FrechetDistance, groups: Sequence[Moments]) -> Estimate:
    """Distance of the images of all ``groups`` together, with its standard error."""
    value = distance(total(groups).gaussian())
    if len(groups) < GROUPS:
        return Estimate(value, None)
    subsets = [distance(total([groups[group] for group in subset]).gaussian()) for subset in SUBSETS]
    return Estimate(value, standard_error(subsets))


def distance_at_infinity(
    distance: FrechetDistance, groups: Sequence[Moments], error: float | None = None
) -> Estimate | None:
    """FID of infinitely many images: the intercept of a line through FID against 1/N (Chong & Forsyth 2020, sec. 3).

    The line is fitted to up to 15 sizes from a tenth of the images to all, evenly spaced, each a random union of
    resampling groups; the paper draws its subsets image by image. Sizes without full rank (N ≤ D) lie on no line and
    are left out. None, with a warning, when fewer than three sizes remain.
    error: of FID of all images; that of the intercept follows, as it weighs the groups unequally.
    """
    width = len(groups[0].mean)
    least = max(1, len(groups) // 10)
    sizes = sorted({round(size) for size in torch.linspace(least, len(groups), _POINTS).tolist()})
    generator = torch.Generator().manual_seed(_EXTRAPOLATION_SEED)
    inverse, distances, shares = [], [], []
    for size in sizes:
        chosen = torch.randperm(len(groups), generator=generator)[:size]
        subset = total([groups[group] for group in chosen.tolist()])
        if subset.count > width:
            inverse.append(1 / subset.count)
            distances.append(distance(subset.gaussian()))
            shares.append(torch.zeros(len(groups), dtype=torch.float64).index_fill_(0, chosen, 1 / size))
    if len(set(inverse)) < 3:
        images = sum(group.count for group in groups)
        _log.warning("%d images for %d features: too few to extrapolate FID to infinitely many", images, width)
        return None
    x, y = torch.tensor([inverse, distances], dtype=torch.float64)
    weights = 1 / len(x) - x.mean() * (x - x.mean()) / (x - x.mean()).square().sum()
    spread = (weights @ torch.stack(shares)).norm().item() * math.sqrt(len(groups))  # 1 where all groups weigh alike
    return Estimate((weights @ y).item(), None if error is None else error * spread)


class SplitScores(NamedTuple):
    """Inception score over splits: mean, sample deviation of a split (None for one), standard error of the mean."""

    mean: float
    deviation: float | None
    error: float | None


def split_scores(sums: ClassSums, groups: int = 1) -> SplitScores:
    """Inception score (Salimans et al. 2016) averaged over splits, as ADM's evaluator does; a short last one counts.

    sums: of each of the ``groups`` of each split, one split after another; without resampling groups there is no error.
    """
    rows = torch.arange(len(sums.counts)).view(-1, groups)
    whole = sums.joined(rows)
    scores = whole.scores()
    error = None
    if groups == GROUPS:
        error = standard_error([sums.joined(rows[:, subset]).scores().mean().item() for subset in SUBSETS])
    if len(scores) < 2:
        return SplitScores(scores.mean().item(), None, error)
    if whole.counts[-1] < whole.counts[0] / 2:
        _log.warning(
            "the last inception split has %d images, the others %d: its score is low for that alone; "
            "let evaluation.inception_split_size divide the images",
            int(whole.counts[-1]),
            int(whole.counts[0]),
        )
    return SplitScores(scores.mean().item(), scores.std().item(), error)


def kernel_distance(real: Tensor, generated: Tensor, size: int, device: torch.device | str = "cpu") -> Estimate:
    """KID (Bińkowski et al. 2018) of features (M, D) and (N, D): mean over blocks of ``size`` images of each set.

    Estimator and cubic kernel are torchmetrics'; it draws its subsets from the global generator with overlap, here
    they are consecutive blocks without. Real blocks are used again when they are fewer. Both sets are shuffled first,
    in a fixed way, for they may be sorted. The error is of parts of every generated block against the same real one.
    Raises ValueError for fewer than ``size`` rows.
    """
    from torchmetrics.image.kid import maximum_mean_discrepancy, poly_kernel

    for name, rows in (("reference images", real), ("images", generated)):
        if len(rows) < size:
            raise ValueError(f"evaluation.kid_block_size is {size}, more than the {len(rows)} {name}")
    real, generated = _checked(real), _checked(generated)
    generator = torch.Generator().manual_seed(_BLOCK_SEED)
    real_blocks, blocks = (
        torch.randperm(len(rows), generator=generator).split(size)[: len(rows) // size] for rows in (real, generated)
    )
    inside = members(size).to(device)
    values, parts = [], []
    for number, block in enumerate(blocks):
        a, b = (
            rows[chosen].to(device, torch.float64)
            for rows, chosen in ((real, real_blocks[number % len(real_blocks)]), (generated, block))
        )
        within_real, between, within = poly_kernel(a, a), poly_kernel(a, b), poly_kernel(b, b)
        values.append(maximum_mean_discrepancy(within_real, between, within))
        parts.append(_differing_part(between, within, inside))
    error = standard_error(torch.stack(parts).mean(0).cpu()) if inside.sum(1).min() > 1 else None
    return Estimate(torch.stack(values).mean().item(), error)


def _differing_part(between: Tensor, within: Tensor, parts: Tensor) -> Tensor:
    """KID (S,) of parts (S, N) of a block, less the real term; kernels ``between`` the sets, ``within`` generated."""
    shares = parts.to(within.dtype)
    counts = shares.sum(1)
    pairs = ((shares @ within) * shares).sum(1) - shares @ within.diagonal()
    return pairs / (counts * (counts - 1)) - 2 * (shares @ between.mean(0)) / counts


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


def _checked(features: Tensor) -> Tensor:
    """features (N, D), for use outside inference mode."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"found features of shape {tuple(features.shape)}, expected (N, D) with at least two rows")
    require_finite(features)
    return features
