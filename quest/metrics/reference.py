"""Feature statistics of a dataset's real images: what every cell of its table is compared with."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from quest.artifacts import Manifest, load_tensors, save_tensors
from quest.config import DatasetSettings
from quest.device import resolve
from quest.metrics.distances import Gaussian, fit
from quest.metrics.extractor import load_extractor
from quest.models.embedded import real_images


class Reference:
    """A read reference.

    pooled (N, D) float32: features of each real image, for precision and recall.
    gaussians: the fits of "pooled" and "spatial" features.
    images: how many real images; extractor_sha256: the network they were seen by; sha256: of the artifact.
    """

    def __init__(self, tensors: dict[str, Tensor], manifest: Manifest):
        self.pooled = tensors["pooled"]
        self.images: int = manifest.notes["images"]
        self.gaussians = {
            name: Gaussian(tensors[f"{name}_mean"], tensors[f"{name}_covariance"], self.images)
            for name in ("pooled", "spatial")
        }
        self.dataset: str = manifest.notes["dataset"]
        self.extractor: str = manifest.notes["extractor"]
        self.extractor_sha256 = manifest.inputs["extractor"]
        self.sha256 = manifest.sha256


def run(dataset: str, settings: DatasetSettings, extractor_path: Path, output: Path, device: str) -> None:
    """The `reference` stage: an artifact of kind "reference".

    Tensors: pooled (N, D) float32; pooled_mean (D,), pooled_covariance (D, D), spatial_mean (S,) and
    spatial_covariance (S, S), float64. Raises ValueError for a dataset without embedded images.
    """
    if settings.real_images is None:
        raise ValueError(f"{dataset}: real_images is not set, so there is nothing to compute a reference from")
    extractor = load_extractor(extractor_path, resolve(device))
    images = real_images(settings.real_images, settings.image_size)
    features = extractor(images)
    pooled, spatial = fit(features.pooled), fit(features.spatial)
    tensors = {
        "pooled": features.pooled,
        "pooled_mean": pooled.mean,
        "pooled_covariance": pooled.covariance,
        "spatial_mean": spatial.mean,
        "spatial_covariance": spatial.covariance,
    }
    manifest = Manifest(
        kind="reference",
        settings={"real_images": settings.real_images, "image_size": settings.image_size},
        inputs={"extractor": extractor.sha256},
        notes={"dataset": dataset, "extractor": extractor.name, "images": len(images)},
    )
    save_tensors(output, tensors, manifest)


def load(path: Path) -> Reference:
    """Read what `run` wrote. Raises ArtifactError when it is missing, corrupt or of another kind."""
    artifact = load_tensors(path, "reference")
    return Reference(artifact.tensors, artifact.manifest)
