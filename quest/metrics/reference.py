"""Feature statistics of a dataset's real images: what every cell of its table is compared with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from quest.artifacts import load_tensors
from quest.metrics import adm
from quest.metrics.extractor import Extractor
from quest.metrics.statistics import Gaussian, Moments, Plan

MANIFOLD_IMAGES = 10_000  # real images of precision, recall and KID, as in ADM's reference batches
CHUNK = 4096  # images whose features are in memory at once, besides those that are kept
READ = 1024  # images of a batch that are read at once: 200 MB at 256×256


@dataclass(frozen=True)
class Reference:
    """Real images as the metrics see them.

    pooled: features (M, D) float32 of at most MANIFOLD_IMAGES of them, for precision, recall and KID.
    gaussians: the fits of "pooled" and "spatial" features, of all images.
    images: how many those are; None where a published batch does not say.
    extractor_sha256: the network they were seen by; sha256: of the artifact or batch.
    """

    pooled: Tensor
    gaussians: dict[str, Gaussian]
    images: int | None
    image_size: int
    dataset: str
    extractor: str
    extractor_sha256: str
    sha256: str


def of_batch(batch: adm.Batch, extractor: Extractor, dataset: str) -> Reference:
    """The reference that a batch of ADM's layout gives: its own statistics where it has them, else those of its images.

    Raises ValueError when its statistics are of features of another width than the extractor's.
    """
    real = reduce(batch.images(READ), batch.shape[0], extractor, dataset, batch.statistics, batch.sha256)
    for name, gaussian in real.gaussians.items():
        if batch.statistics is not None and name == "pooled" and len(gaussian.mean) != real.pooled.shape[1]:
            raise ValueError(
                f"{batch.path}: its statistics are of {len(gaussian.mean)} features, {extractor.name} has "
                f"{real.pooled.shape[1]}; they were made with another network"
            )
    return real


def reduce(
    parts: Iterable[Tensor],
    count: int,
    extractor: Extractor,
    dataset: str,
    statistics: dict[str, Gaussian] | None = None,
    sha256: str = "",
) -> Reference:
    """The reference of ``count`` images that come in ``parts`` (n, C, H, W) uint8; ``statistics`` if known before.

    Of more than MANIFOLD_IMAGES, features of a fixed random choice are kept.
    """
    kept = Plan(count, count).places() < MANIFOLD_IMAGES
    moments: dict[str, Moments] = {}
    pooled: list[Tensor] = []
    first, size = 0, 0
    for images in parts:
        size = images.shape[-1]
        features = extractor(images)
        chosen = kept[first : first + len(images)].to(features.pooled.device)
        pooled.append(features.pooled[chosen].float().cpu())
        if statistics is None:
            for name in ("pooled", "spatial"):
                rows: Tensor = getattr(features, name)
                moments.setdefault(name, Moments(rows.shape[1], rows.device)).update(rows)
        first += len(images)
    gaussians = statistics or {
        name: Gaussian(each.mean.cpu(), each.gaussian().covariance.cpu(), each.count) for name, each in moments.items()
    }
    return Reference(
        pooled=torch.cat(pooled),
        gaussians=gaussians,
        images=gaussians["pooled"].rows,
        image_size=size,
        dataset=dataset,
        extractor=extractor.name,
        extractor_sha256=extractor.sha256,
        sha256=sha256,
    )


def load(path: Path) -> Reference:
    """Read what `run` wrote. Raises ArtifactError when it is missing, corrupt or of another kind."""
    artifact = load_tensors(path, "reference")
    tensors, manifest = artifact.tensors, artifact.manifest
    images: int | None = manifest.notes["images"]
    return Reference(
        pooled=tensors["pooled"],
        gaussians={
            name: Gaussian(tensors[f"{name}_mean"], tensors[f"{name}_covariance"], images)
            for name in ("pooled", "spatial")
        },
        images=images,
        image_size=manifest.settings["image_size"],
        dataset=manifest.notes["dataset"],
        extractor=manifest.notes["extractor"],
        extractor_sha256=manifest.inputs["extractor"],
        sha256=manifest.sha256,
    )
