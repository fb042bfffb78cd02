"""Feature statistics of a dataset's real images: what every cell of its table is compared with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from quest.artifacts import Manifest, load_tensors, save_tensors
from quest.config import DatasetSettings
from quest.device import resolve
from quest.metrics import adm
from quest.metrics.extractor import Extractor, load_extractor
from quest.metrics.statistics import Gaussian, Moments, Plan
from quest.models.embedded import real_images

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


def run(dataset: str, settings: DatasetSettings, extractor_path: Path, output: Path, device: str) -> None:
    """The `reference` stage: an artifact of kind "reference", of ``real_images`` or of ``reference_batch``.

    Tensors: pooled (M, D) float32; pooled_mean (D,), pooled_covariance (D, D), spatial_mean (S,) and
    spatial_covariance (S, S), float64. Raises ValueError for a dataset without either, or a batch of another size.
    """
    where = resolve(device)
    if settings.reference_batch is not None:
        batch = adm.open_batch(settings.reference_batch, settings.reference_sha256)
        expected = (settings.image_size, settings.image_size, settings.image_channels)
        if batch.shape[1:] != expected:
            raise ValueError(
                f"{batch.path}: images are {batch.shape[1:]}, the protocol's (image_size, image_size, image_channels) "
                f"are {expected}"
            )
        extractor = load_extractor(extractor_path, where)
        real = of_batch(batch, extractor, dataset)
        source, inputs = {"reference_batch": settings.reference_batch.name}, {"batch": batch.sha256}
    elif settings.real_images is not None:
        extractor = load_extractor(extractor_path, where)
        images = real_images(settings.real_images, settings.image_size, settings.reference_images)
        real = reduce(images.split(CHUNK), len(images), extractor, dataset)
        source, inputs = {"real_images": settings.real_images}, {}
    else:
        raise ValueError(
            f"{dataset}: neither real_images nor reference_batch is set, so there is nothing to compare with"
        )
    tensors = {"pooled": real.pooled}
    for name, gaussian in real.gaussians.items():
        tensors |= {f"{name}_mean": gaussian.mean, f"{name}_covariance": gaussian.covariance}
    manifest = Manifest(
        kind="reference",
        settings=source | {"image_size": settings.image_size},
        inputs={"extractor": extractor.sha256} | inputs,
        notes={
            "dataset": dataset,
            "extractor": extractor.name,
            "resize": extractor.resize,
            "images": real.images,
            "manifold_images": len(real.pooled),
        },
    )
    save_tensors(output, tensors, manifest)


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
