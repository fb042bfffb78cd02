"""Feature statistics of the real images of DATASET: what its metrics compare with."""

from __future__ import annotations

from pathlib import Path

import torch

from quest.artifacts import Manifest, save_tensors
from quest.config.dataset import DatasetSettings
from quest.embedded.images import real_images
from quest.metrics import adm
from quest.metrics import reference as references
from quest.metrics.extractor import load_extractor
from quest.stages import DEVICE, OUTPUT, PROTOCOL, file

SECTIONS = ("real_images", "reference_images", "reference_batch", "reference_sha256")
PARAMETERS = (*PROTOCOL, file("extractor"), OUTPUT, DEVICE)


def run(dataset: str, settings: DatasetSettings, extractor: Path, output: Path, device: torch.device) -> None:
    """Write an artifact of kind "reference", of ``real_images`` or of ``reference_batch``.

    Tensors: pooled (M, D) float32; pooled_mean (D,), pooled_covariance (D, D), spatial_mean (S,) and
    spatial_covariance (S, S), float64. Raises ValueError for a dataset without either, or a batch of another size.
    """
    if settings.reference_batch is not None:
        batch = adm.open_batch(settings.reference_batch, settings.reference_sha256)
        expected = (settings.image_size, settings.image_size, settings.image_channels)
        if batch.shape[1:] != expected:
            raise ValueError(
                f"{batch.path}: images are {batch.shape[1:]}, the protocol's (image_size, image_size, image_channels) "
                f"are {expected}"
            )
        network = load_extractor(extractor, device)
        real = references.of_batch(batch, network, dataset)
        source, inputs = {"reference_batch": settings.reference_batch.name}, {"batch": batch.sha256}
    elif settings.real_images is not None:
        network = load_extractor(extractor, device)
        images = real_images(settings.real_images, settings.image_size, settings.reference_images)
        real = references.reduce(images.split(references.CHUNK), len(images), network, dataset)
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
        inputs={"extractor": network.sha256} | inputs,
        notes={
            "dataset": dataset,
            "extractor": network.name,
            "resize": network.resize,
            "images": real.images,
            "manifold_images": len(real.pooled),
        },
    )
    save_tensors(output, tensors, manifest)
