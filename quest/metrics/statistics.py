"""Streaming statistics in float64 that merge: moments of features, and what the inception score needs of logits.

An image enters by its index alone. `Plan` gives every index a place in one fixed shuffled order, and from the place
follow its resampling group and its inception split; so shards can be reduced apart, in any order and batch size, and
merged to the same statistics up to rounding.

Memory for features of width D and S spatial numbers, whatever the number of images: GROUPS · (D² + S²) · 8 bytes,
1.3 GB for Inception. Precision, recall and KID need the features themselves: those of at most FEATURE_IMAGES images
are kept, 4 · D bytes each, 410 MB for Inception.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from quest.metrics.extractor import Features

GROUPS = 20  # of the standard errors and of the extrapolation to infinitely many images
FEATURE_IMAGES = 50_000  # ADM's evaluator compares as many generated images in precision and recall
_SHUFFLE_SEED = 0
_ROWS = 1024  # in float64 at once
_PANEL = 256  # rows of a scatter matrix that are added to at once
_TILE = 128  # of a matrix that is mirrored


class Gaussian(NamedTuple):
    """What the Fréchet distance fits to features: mean (D,) and covariance (D, D), float64, of ``rows`` rows.

    rows: None where a published reference does not say of how many images it is.
    """

    mean: Tensor
    covariance: Tensor
    rows: int | None


def require_finite(features: Tensor) -> None:
    """Raises ValueError for NaN or infinity; extremes carry both, and unlike ``isfinite()`` need no memory."""
    if features.numel() and not torch.stack(features.aminmax()).isfinite().all():
        raise ValueError("the feature extractor gave NaN or infinite features")


class Moments:
    """Count, mean (D,) and scatter about the mean (D, D) of feature rows, float64; merged by Chan's formula.

    Chan, Golub and LeVeque 1983: no sum of squares is kept, which would lose digits to cancellation.
    scatter: its upper triangle alone counts; what stands below is left to chance.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu"):
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(width, width, dtype=torch.float64, device=device)

    def update(self, features: Tensor) -> None:
        """Take in features (N, D) of any float dtype and device. Raises ValueError for NaN, infinity or another D."""
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"found features of shape {tuple(features.shape)}, expected (N, {len(self.mean)})")
        require_finite(features)
        for part in features.split(_ROWS):
            if count := len(part):
                rows = torch.empty(count + 1, len(self.mean), dtype=torch.float64, device=self.mean.device)
                centred = rows[:-1].copy_(part)
                mean = centred.mean(0)
                centred -= mean
                # The gap between the means enters the scatter as one more row.
                rows[-1] = self._move_mean(count, mean)
                _add_gram(self.scatter, rows)

    def merge(self, other: Moments) -> None:
        """Take in all that ``other`` has seen. Raises ValueError for another width."""
        if len(other.mean) != len(self.mean):
            raise ValueError(f"cannot merge moments of width {len(other.mean)} into those of width {len(self.mean)}")
        if other.count:
            gap = self._move_mean(other.count, other.mean.to(self.mean.device))
            self.scatter += other.scatter.to(self.mean.device)
            self.scatter.addr_(gap, gap)

    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance. Raises ValueError for fewer than two rows."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least two rows of features, found {self.count}")
        return Gaussian(self.mean.clone(), _mirrored(self.scatter / (self.count - 1)), self.count)

    def _move_mean(self, count: int, mean: Tensor) -> Tensor:
        """Count ``count`` rows of ``mean`` in; returns g (D,) by whose square ggᵀ the scatter grows besides theirs."""
        gap = mean - self.mean
        total = self.count + count
        weight = math.sqrt(self.count * count / total)
        self.mean += gap * (count / total)
        self.count = total
        return gap * weight


def _add_gram(scatter: Tensor, rows: Tensor) -> None:
    """Add rowsᵀ · rows of rows (N, D) to the upper triangle of ``scatter`` (D, D), or to all of it."""
    # In panels, about half of the products; on a GPU they would be too small to keep it busy.
    panel = _PANEL if rows.device.type == "cpu" else len(scatter)
    for first in range(0, len(scatter), panel):
        scatter[first : first + panel, first:].addmm_(rows[:, first : first + panel].T, rows[:, first:])


def _mirrored(matrix: Tensor) -> Tensor:
    """``matrix`` (D, D) with its upper triangle copied to the lower, in place and in tiles that stay in the cache."""
    for first in range(0, len(matrix), _TILE):
        rows, rest = matrix[first : first + _TILE], slice(first + _TILE, None)
        square = rows[:, first : first + _TILE]
        square.copy_(square.triu() + square.triu(1).T)
        matrix[rest, first : first + _TILE] = rows[:, rest].T
    return matrix


def total(parts: Sequence[Moments]) -> Moments:
    """The moments of all ``parts`` together, in new storage."""
    result = Moments(len(parts[0].mean), parts[0].mean.device)
    for part in parts:
        result.merge(part)
    return result


class ClassSums:
    """Per split, what the inception score needs: images, summed probabilities (K,) and summed negative entropy."""

    def __init__(self, splits: int, classes: int, device: torch.device | str = "cpu"):
        self.counts = torch.zeros(splits, dtype=torch.float64, device=device)
        self.probabilities = torch.zeros(splits, classes, dtype=torch.float64, device=device)
        self.negentropy = torch.zeros(splits, dtype=torch.float64, device=device)

    def update(self, logits: Tensor, splits: Tensor) -> None:
        """Take in logits (N, K) of images that belong to ``splits`` (N,). Raises ValueError for NaN or infinity."""
        require_finite(logits)
        device = self.counts.device
        log_p = logits.to(device, torch.float64).log_softmax(1)
        p = log_p.exp()
        splits = splits.to(device)
        self.counts.index_add_(0, splits, torch.ones_like(log_p[:, 0]))
        self.probabilities.index_add_(0, splits, p)
        # Where p underflows to 0, log p is still finite, so the product is 0 as it should be.
        self.negentropy.index_add_(0, splits, (p * log_p).sum(1))

    def merge(self, other: ClassSums) -> None:
        """Take in all that ``other`` has seen."""
        for name in ("counts", "probabilities", "negentropy"):
            getattr(self, name).add_(getattr(other, name).to(self.counts.device))

    def joined(self, rows: Tensor) -> ClassSums:
        """The sums of new splits, each of the old ones that a row of ``rows`` (splits, n) numbers."""
        result = ClassSums(0, self.probabilities.shape[1])
        for name in ("counts", "probabilities", "negentropy"):
            setattr(result, name, getattr(self, name)[rows.to(self.counts.device)].sum(1))
        return result

    def scores(self) -> Tensor:
        """exp(E KL(p(y|x) ‖ p(y))) of each split that has images, float64 (Salimans et al. 2016)."""
        seen = self.counts > 0
        counts, probabilities = self.counts[seen], self.probabilities[seen]
        marginal = probabilities / counts[:, None]
        return (self.negentropy[seen] / counts - torch.xlogy(marginal, marginal).sum(1)).exp()


@dataclass(frozen=True)
class Plan:
    """Which group and which split each of ``images`` falls into; the same for everyone who knows the number.

    split_size: images of one inception split; the last split has what remains.
    """

    images: int
    split_size: int

    @property
    def groups(self) -> int:
        """Resampling groups: GROUPS, or as many as leave two images in each."""
        return max(1, min(GROUPS, self.images // 2))

    @property
    def splits(self) -> int:
        """Inception splits."""
        return -(-self.images // self.split_size)

    def places(self) -> Tensor:
        """The place (N,) int64 of each image in the shuffled order."""
        order = torch.randperm(self.images, generator=torch.Generator().manual_seed(_SHUFFLE_SEED))
        places = torch.empty_like(order)
        places[order] = torch.arange(self.images)
        return places


@dataclass(frozen=True)
class Protocol:
    """What must be equal for two accumulators to be merged."""

    plan: Plan
    extractor_sha256: str


class Accumulator:
    """Everything the metrics need of generated images, taken in part by part.

    pooled, spatial: `Moments` of each resampling group. shuffled: `ClassSums` of each split's groups, one split after
    another, of the shuffled order; unshuffled: of each split of the images' own order (as ADM's evaluator cuts them).
    """

    def __init__(self, plan: Plan, extractor_sha256: str, device: torch.device | str = "cpu"):
        self.protocol = Protocol(plan, extractor_sha256)
        self.plan, self.device = plan, device
        self._places = plan.places()
        self._seen = torch.zeros(plan.images, dtype=torch.bool)
        self.pooled: list[Moments] = []
        self.spatial: list[Moments] = []
        self._features: Tensor | None = None

    @property
    def count(self) -> int:
        """Images taken in so far."""
        return int(self._seen.sum())

    def update(self, first: int, features: Features) -> None:
        """Take in the features of images ``first``, ``first`` + 1, …

        Raises ValueError, and takes nothing in, for images that the plan does not have or that came before, and for
        NaN or infinite features.
        """
        count = len(features.pooled)
        if first < 0 or first + count > self.plan.images:
            raise ValueError(f"images {first} to {first + count - 1} of a set of {self.plan.images}")
        if self._seen[first : first + count].any():
            raise ValueError(f"images {first} to {first + count - 1} were taken in before; give each shard once")
        for part in features:
            require_finite(part)
        if not self.pooled:
            self._allocate(features.pooled.shape[1], features.spatial.shape[1], features.logits.shape[1])
        places = self._places[first : first + count]
        groups = places % self.plan.groups
        for group in groups.unique().tolist():
            rows = (groups == group).to(features.pooled.device)
            self.pooled[group].update(features.pooled[rows])
            self.spatial[group].update(features.spatial[rows])
        indices = torch.arange(first, first + count)
        self.shuffled.update(features.logits, places // self.plan.split_size * self.plan.groups + groups)
        self.unshuffled.update(features.logits, indices // self.plan.split_size)
        assert self._features is not None
        kept = places < len(self._features)
        self._features[places[kept]] = features.pooled[kept.to(features.pooled.device)].float().cpu()
        self._seen[first : first + count] = True

    def merge(self, other: Accumulator) -> None:
        """Take in all that ``other`` has seen. Raises ValueError where the two overlap or follow other plans."""
        if self.protocol != other.protocol:
            raise ValueError(f"cannot merge statistics of {other.protocol} into those of {self.protocol}")
        if (self._seen & other._seen).any():
            raise ValueError("cannot merge statistics that share images; give each shard once")
        if other._features is None:
            return
        if self._features is None:
            widths = len(other.pooled[0].mean), len(other.spatial[0].mean)
            self._allocate(*widths, other.shuffled.probabilities.shape[1])
        assert self._features is not None
        for own, others in ((self.pooled, other.pooled), (self.spatial, other.spatial)):
            for moments, more in zip(own, others, strict=True):
                moments.merge(more)
        self.shuffled.merge(other.shuffled)
        self.unshuffled.merge(other.unshuffled)
        rows = self._places[other._seen]
        rows = rows[rows < len(self._features)]
        self._features[rows] = other._features[rows]
        self._seen |= other._seen

    def features(self) -> Tensor:
        """Pooled features (min(N, FEATURE_IMAGES), D) float32 in the shuffled order; of all images if so few.

        Raises ValueError while images are missing.
        """
        if self._features is None or not self._seen.all():
            raise ValueError(f"found {self.count} of {self.plan.images} images; all are needed")
        return self._features

    def _allocate(self, width: int, spatial: int, classes: int) -> None:
        groups = range(self.plan.groups)
        self.pooled = [Moments(width, self.device) for _ in groups]
        self.spatial = [Moments(spatial, self.device) for _ in groups]
        self.shuffled = ClassSums(self.plan.splits * self.plan.groups, classes, self.device)
        self.unshuffled = ClassSums(self.plan.splits, classes, self.device)
        self._features = torch.empty(min(self.plan.images, FEATURE_IMAGES), width)
