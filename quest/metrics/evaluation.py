"""All metrics of generated images against a reference, each with what makes it quotable.

Images are seen once: features go into an `Accumulator`, and the numbers come from that. ADM's evaluator defines FID,
sFID, IS, precision and recall; KID stands beside them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quest.config import EvaluationSettings
from quest.metrics import distances
from quest.metrics.extractor import Extractor
from quest.metrics.reference import CHUNK, Reference
from quest.metrics.statistics import Accumulator, Plan


def start(settings: EvaluationSettings, images: int, extractor: Extractor) -> Accumulator:
    """An empty accumulator for ``images`` images seen by ``extractor``, on its device."""
    return Accumulator(Plan(images, settings.inception_split_size), extractor.sha256, extractor.device)


def take_in(accumulator: Accumulator, first: int, images: Tensor, extractor: Extractor) -> None:
    """Extract features of ``images`` (n, C, H, W) uint8, which are number ``first`` and on, and accumulate them."""
    for part in images.split(CHUNK):
        accumulator.update(first, extractor(part))
        first += len(part)


def numbers(
    accumulator: Accumulator, real: Reference, settings: EvaluationSettings, device: torch.device | str
) -> dict[str, Any]:
    """The metrics of all images by name; ``<name>_se`` is a standard error, None where images are too few.

    fid, sfid: with delete-a-group jackknife errors over 20 groups; fid_infinity: FID extrapolated to infinitely many
    images. is: of the shuffled order, is_std its deviation over splits; is_unshuffled: of the order of the images.
    kid, precision, recall: of at most 50,000 images. Every error is that of the generated images, the reference given.
    Raises ValueError while images are missing, or for a reference of another extractor.
    """
    if real.extractor_sha256 != accumulator.protocol.extractor_sha256:
        raise ValueError(
            f"the reference was made with extractor {real.extractor_sha256[:12]}…, "
            f"the images were seen by {accumulator.protocol.extractor_sha256[:12]}…"
        )
    features = accumulator.features()  # checks that all images are there
    distance = distances.FrechetDistance(real.gaussians["pooled"], device)
    distance.warn_if_rank_deficient(accumulator.count)
    fid = distances.jackknifed_distance(distance, accumulator.pooled)
    infinity = distances.distance_at_infinity(distance, accumulator.pooled)
    spatial = distances.FrechetDistance(real.gaussians["spatial"], device)
    spatial.warn_if_rank_deficient(accumulator.count)
    sfid = distances.jackknifed_distance(spatial, accumulator.spatial)
    score = distances.split_scores(accumulator.shuffled)
    kid = distances.kernel_distance(real.pooled, features, settings.kid_block_size, device)
    precision, recall = distances.precision_recall(real.pooled, features, settings.neighbours, device)
    return {
        "fid": fid.value,
        "fid_se": fid.error,
        "fid_infinity": infinity,
        "sfid": sfid.value,
        "sfid_se": sfid.error,
        "is": score.mean,
        "is_std": score.deviation,
        "is_se": score.error,
        "is_unshuffled": distances.split_scores(accumulator.unshuffled).mean,
        "kid": kid.value,
        "kid_se": kid.error,
        "precision": precision.value,
        "precision_se": precision.error,
        "recall": recall.value,
        "recall_se": recall.error,
    }


def provenance(extractor: Extractor, real: Reference, settings: EvaluationSettings) -> dict[str, Any]:
    """What every number was measured with, by name: extractor, resize mode, reference, and the variants chosen."""
    return {
        "extractor": extractor.name,
        "extractor_sha256": extractor.sha256,
        "resize": extractor.resize,
        "reference_sha256": real.sha256,
        "reference_images": real.images,
        "manifold_images": len(real.pooled),
        "inception_split_size": settings.inception_split_size,
        "kid_block_size": settings.kid_block_size,
        "neighbours": settings.neighbours,
    }
