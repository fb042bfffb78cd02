"""All metrics of generated images against a reference, each with what makes it quotable.

Images are seen once: features go into an `Accumulator`, and the numbers come from that. ADM's evaluator defines FID,
sFID, IS, precision and recall; KID stands beside them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from quest.config.evaluation import EvaluationSettings
from quest.metrics import adm, distances, manifold
from quest.metrics.extractor import Extractor, load_extractor
from quest.metrics.reference import CHUNK, READ, Reference, of_batch
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

    fid_infinity: FID extrapolated to infinitely many images. is: of the shuffled order, is_std its deviation over
    splits; is_unshuffled: of the order of the images. kid, precision, recall: of at most 50,000 images. Every error is
    that of the generated images, the reference given (`quest.metrics.resampling`).
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
    fid = distances.distance_of(distance, accumulator.pooled)
    infinity = distances.distance_at_infinity(distance, accumulator.pooled, fid.error)
    spatial = distances.FrechetDistance(real.gaussians["spatial"], device)
    spatial.warn_if_rank_deficient(accumulator.count)
    sfid = distances.distance_of(spatial, accumulator.spatial)
    score = distances.split_scores(accumulator.shuffled, accumulator.plan.groups)
    kid = distances.kernel_distance(real.pooled, features, settings.kid_block_size, device)
    precision, recall = manifold.precision_recall(real.pooled, features, settings.neighbours, device)
    return {
        "fid": fid.value,
        "fid_se": fid.error,
        "fid_infinity": None if infinity is None else infinity.value,
        "fid_infinity_se": None if infinity is None else infinity.error,
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


def of_batches(samples: Path, real: Path, extractor_path: Path, device: torch.device | str) -> dict[str, Any]:
    """What ADM's evaluator prints, and the rest of `numbers`, of two batches of its layout; with their provenance.

    Raises ValueError when the batches are not of one image size, and ArtifactError when one cannot be read.
    """
    generated, known = adm.open_batch(samples), adm.open_batch(real)
    if generated.shape[1:] != known.shape[1:]:
        raise ValueError(f"{real}: images are {known.shape[1:]}, those of {samples} are {generated.shape[1:]}")
    extractor = load_extractor(extractor_path, device)
    reference = of_batch(known, extractor, real.name)
    count = generated.shape[0]
    block = min(EvaluationSettings().kid_block_size, count, len(reference.pooled))
    settings = EvaluationSettings(images=count, kid_block_size=block)
    accumulator = start(settings, count, extractor)
    first = 0
    for images in tqdm(generated.images(READ), desc="samples", unit="part", total=-(-count // READ), mininterval=5):
        take_in(accumulator, first, images, extractor)
        first += len(images)
    found = numbers(accumulator, reference, settings, device)
    return {"images": count, **found, **provenance(extractor, reference, settings), "samples_sha256": generated.sha256}


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
