"""Metrics of one's own images against a reference, by the stages' functions; and image by image against another set."""

from __future__ import annotations

import math
from typing import Any

import torch

from quest.config.evaluation import EvaluationSettings
from quest.metrics import distances, evaluation
from quest.metrics.extractor import Extractor
from quest.metrics.measure import squared_errors
from quest.metrics.own.images import ImageSet, listing, written
from quest.metrics.own.reference import Known
from quest.metrics.statistics import Accumulator

_OF_FEATURES = ("kid", "kid_se", "precision", "precision_se", "recall", "recall_se")
_OF_SPATIAL = ("sfid", "sfid_se")


def choices(count: int, known: Known, **given: int | None) -> EvaluationSettings:
    """How ``count`` images are evaluated: ADM's defaults, but those ``given`` and not None.

    Blocks of KID are no larger than the smaller set unless they are given. Raises ValueError for fewer than two images.
    """
    if count < 2:
        raise ValueError("one image; distances between sets need at least two")
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if known.has_features:
        least = min(EvaluationSettings().kid_block_size, count, len(known.real.pooled))
        chosen = {"kid_block_size": least} | chosen
    return EvaluationSettings(images=count, **chosen)


def measure(
    images: ImageSet, known: Known, extractor: Extractor, settings: EvaluationSettings, device: torch.device | str
) -> dict[str, Any]:
    """The numbers of `quest.metrics.evaluation.numbers` with their errors, and what they were measured with.

    A number is None where the reference has nothing to compute it from; "without" then says why.
    Raises ValueError for a reference of another extractor, and for sets too small for a metric.
    """
    if known.has_features:
        import torchmetrics.image.kid  # noqa: F401 (where it is missing, say so before hours of features)
    accumulator = evaluation.start(settings, images.count, extractor)
    first = 0
    for part in images.parts():
        evaluation.take_in(accumulator, first, part, extractor)
        first += len(part)
    without = None
    if known.has_features:
        found = evaluation.numbers(accumulator, known.real, settings, device)
    else:
        found, without = _against_fits(accumulator, known, device)
    return {
        "images": images.count,
        "images_sha256": images.sha256,
        "reference": known.real.dataset,
        **found,
        "without": without,
        **evaluation.provenance(extractor, known.real, settings),
    }


def closeness(images: ImageSet, targets: ImageSet) -> dict[str, Any]:
    """PSNR in dB and MSE on the [0, 1] scale over all values of all images, each with the one of its name (or place).

    psnr is None for equal images. Raises ValueError, naming them, for images that one of the sets lacks.
    """
    _require_pairs(images, targets)
    each = [e for pair in zip(images.parts(), targets.parts(), strict=True) for e in squared_errors(*pair)]
    mse = math.fsum(each) / len(each)
    return {"psnr": distances.psnr(mse), "mse": mse, "against_sha256": targets.sha256}


def _against_fits(accumulator: Accumulator, known: Known, device: torch.device | str) -> tuple[dict[str, Any], str]:
    """What a mean and a covariance are enough for: FID, its extrapolation, and IS, which needs no reference."""
    accumulator.features()  # checks that all images are there
    distance = distances.FrechetDistance(known.real.gaussians["pooled"], device)
    distance.warn_if_rank_deficient(accumulator.count)
    fid = distances.distance_of(distance, accumulator.pooled)
    infinity = distances.distance_at_infinity(distance, accumulator.pooled, fid.error)
    score = distances.split_scores(accumulator.shuffled, accumulator.plan.groups)
    found: dict[str, Any] = {
        "fid": fid.value,
        "fid_se": fid.error,
        "fid_infinity": None if infinity is None else infinity.value,
        "fid_infinity_se": None if infinity is None else infinity.error,
        **dict.fromkeys(_OF_SPATIAL),
        "is": score.mean,
        "is_std": score.deviation,
        "is_se": score.error,
        "is_unshuffled": distances.split_scores(accumulator.unshuffled).mean,
        **dict.fromkeys(_OF_FEATURES),
    }
    if known.has_spatial:
        sfid = distances.distance_of(
            distances.FrechetDistance(known.real.gaussians["spatial"], device), accumulator.spatial
        )
        found |= {"sfid": sfid.value, "sfid_se": sfid.error}
    missing = "KID, precision and recall" if known.has_spatial else "sFID, KID, precision and recall"
    return found, f"the reference is statistics alone, without images: no {missing}"


def _require_pairs(images: ImageSet, targets: ImageSet) -> None:
    if bool(images.names) != bool(targets.names):
        raise ValueError(
            f"{targets.path}: images pair by name in folders and by place in batches; give two of the same kind"
        )
    lacking = [
        f"{here.path} lacks {listing(sorted(set(other.names) - set(here.names)))}"
        for here, other in ((images, targets), (targets, images))
        if set(other.names) - set(here.names)
    ]
    if lacking:
        raise ValueError(f"images without one of the same name: {'; '.join(lacking)}")
    if images.count != targets.count:
        raise ValueError(f"{targets.path}: {targets.count} images, but {images.path} has {images.count}")
    if images.size is None or images.size != targets.size:
        sizes = [written(each.size) if each.size else "several sizes" for each in (targets, images)]
        raise ValueError(
            f"{targets.path}: images of {sizes[0]}, those of {images.path} are of {sizes[1]}; pairs need one size"
        )
