"""A reference of one's own: one artifact, of a folder of images, of a batch of them, or of published statistics.

It is what the pipeline's `reference` stage writes, so either may be measured against. What a source does not have is
empty in it: a file of mu and sigma alone leaves no features for KID, precision and recall, and no spatial statistics.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quest.artifacts import Manifest, load_tensors, save_tensors
from quest.metrics import reference as references
from quest.metrics.extractor import Extractor
from quest.metrics.own import fits
from quest.metrics.own.images import Batch, Finding, ImageSet, Reading, Size, open_for
from quest.metrics.own.resizing import ADM
from quest.metrics.reference import Reference
from quest.metrics.statistics import Gaussian

FITTED = ("pooled", "spatial")


@dataclass(frozen=True)
class Known:
    """A reference that was read. size: of its images; None where they differ or none were seen. resize: of them."""

    real: Reference
    size: Size | None
    resize: str

    @property
    def has_features(self) -> bool:
        """Whether it has features of images, and not their mean and covariance alone."""
        return len(self.real.pooled) > 0

    @property
    def has_spatial(self) -> bool:
        return len(self.real.gaussians["spatial"].mean) > 0


def write(
    output: Path,
    source: Path,
    name: str,
    extractor: Extractor,
    reading: Reading,
    size: Size | None = None,
    resize_named: bool = True,
) -> tuple[Manifest, dict[str, Finding]]:
    """Write the reference of a folder or an .npz; returns its manifest, and what is told of the images.

    name: what results call it. size: what every image should have, by default that of most. resize_named: whether the
    user said how images become the extractor's input, which no file of statistics says.
    The artifact is of kind "reference" with the tensors of `quest.stages.reference`. Raises ValueError for images that
    cannot be measured as they are (`open_for`) and for statistics of another network.
    """
    published = fits.read(source)
    if published is not None:
        real = _of_fits(source, published, name, extractor, resize_named)
        return _save(output, source.name, real, extractor, None, Reading(), {}), {}
    images = open_for(extractor, source, reading, size)
    if images.count < 2:
        raise ValueError(f"{source}: one image; a covariance needs at least two")
    real = _of_images(images, name, extractor)
    return _save(output, source.resolve().name, real, extractor, images.size, reading, images.found), images.found


def load(path: Path) -> Known:
    """Read a reference, one's own or the pipeline's. Raises ArtifactError when it is missing, corrupt or no such."""
    manifest = load_tensors(path, "reference").manifest
    size: Any = manifest.settings["image_size"]
    return Known(
        references.load(path),
        (size, size) if isinstance(size, int) else None if size is None else (size[0], size[1]),
        manifest.notes["resize"],
    )


def require_alike(known: Known, extractor: Extractor, reference: Path) -> None:
    """Raise ValueError, naming both sides, unless ``extractor`` is the reference's, with its resizing."""
    real = known.real
    if real.extractor_sha256 != extractor.sha256:
        raise ValueError(
            f"{reference}: made with extractor {real.extractor} ({real.extractor_sha256[:12]}…), but the images would "
            f"be seen by {extractor.name} ({extractor.sha256[:12]}…); features of two networks are never compared"
        )
    if known.resize != extractor.resize:
        raise ValueError(
            f"{reference}: images were resized by {known.resize}, but those to measure would be by {extractor.resize}; "
            "distances of two kinds of resizing are never compared: leave --resize out, or make the reference anew"
        )


def _of_images(images: ImageSet, name: str, extractor: Extractor) -> Reference:
    statistics = images.statistics if isinstance(images, Batch) else None
    if statistics is not None:
        _require_fitting(images.path, statistics, extractor)
    return references.reduce(images.parts(), images.count, extractor, name, statistics, images.sha256)


def _of_fits(source: Path, found: fits.Fits, name: str, extractor: Extractor, resize_named: bool) -> Reference:
    if "spatial" not in found.gaussians and extractor.resize != "none" and not resize_named:
        raise ValueError(
            f"{source}: mu and sigma alone do not say how the images were resized; add --resize pytorch-fid, "
            "--resize clean-fid or --resize adm, after the program that made them"
        )
    _require_fitting(source, found.gaussians, extractor)
    gaussians = {fitted: found.gaussians.get(fitted, _nothing()) for fitted in FITTED}
    width = len(gaussians["pooled"].mean)
    nothing = torch.empty(0, width)
    return Reference(nothing, gaussians, None, 0, name, extractor.name, extractor.sha256, found.sha256)


def _nothing() -> Gaussian:
    return Gaussian(torch.empty(0).double(), torch.empty(0, 0).double(), None)


def _require_fitting(source: Path, gaussians: dict[str, Gaussian], extractor: Extractor) -> None:
    """Raise ValueError for statistics that ``extractor`` cannot have given."""
    if "spatial" in gaussians and extractor.resize not in (ADM, "none"):
        raise ValueError(f"{source}: mu_s and sigma_s are of ADM's evaluator, which resizes by {ADM}; --resize adm")
    blank = torch.zeros(1, extractor.channels, 32, 32, dtype=torch.uint8)
    width, found = extractor(blank).pooled.shape[1], len(gaussians["pooled"].mean)
    if found != width:
        raise ValueError(
            f"{source}: its statistics are of {found} features, {extractor.name} has {width}; they were made with "
            "another network"
        )


def _save(
    output: Path,
    source: str,
    real: Reference,
    extractor: Extractor,
    size: Size | None,
    reading: Reading,
    found: dict[str, Finding],
) -> Manifest:
    tensors: dict[str, Tensor] = {"pooled": real.pooled}
    for fitted, gaussian in real.gaussians.items():
        tensors |= {f"{fitted}_mean": gaussian.mean, f"{fitted}_covariance": gaussian.covariance}
    side = size and (size[0] if size[0] == size[1] else list(size))  # the stages know square images only
    manifest = Manifest(
        kind="reference",
        settings={
            "source": source,
            "image_size": side,
            "reading": asdict(reading),
        },
        inputs={"extractor": extractor.sha256, "images": real.sha256},
        notes={
            "dataset": real.dataset,
            "extractor": extractor.name,
            "resize": extractor.resize,
            "images": real.images,
            "manifold_images": len(real.pooled),
            "found": {what: finding.count for what, finding in found.items()},
        },
    )
    return save_tensors(output, tensors, manifest)
