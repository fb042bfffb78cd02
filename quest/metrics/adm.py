"""ADM's ``.npz`` batches (guided-diffusion): images in ``arr_0``, statistics of a whole dataset in ``mu``, ``sigma``, …

Images are read from the archive a part at a time: 50,000 of 256×256 are 9.8 GB.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from quest.artifacts import ArtifactError
from quest.metrics.statistics import Gaussian

IMAGES = "arr_0"
STATISTICS = ("mu", "sigma", "mu_s", "sigma_s")

# What ADM's evaluator prints for admnet_guided_upsampled_imagenet256.npz against VIRTUAL_imagenet256_labeled.npz, by
# https://github.com/openai/guided-diffusion/blob/main/evaluations/README.md; its IS is of the unshuffled order.
PUBLISHED_ADM_G_U = {
    "is_unshuffled": 215.8370361328125,
    "fid": 3.9425574129223264,
    "sfid": 6.140433703346162,
    "precision": 0.8265,
    "recall": 0.5309,
}


@dataclass(frozen=True)
class Batch:
    """An opened batch. shape: (N, H, W, C) of its images; statistics: of pooled and spatial features, if any."""

    path: Path
    shape: tuple[int, int, int, int]
    statistics: dict[str, Gaussian] | None
    sha256: str

    def images(self, count: int) -> Iterator[Tensor]:
        """All images in order, (n, C, H, W) uint8, ``count`` at a time. Raises ArtifactError for a corrupt file."""
        total, height, width, channels = self.shape
        size = height * width * channels
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{IMAGES}.npy") as member:
                _header(self.path, member)
                for first in range(0, total, count):
                    part = torch.empty(min(count, total - first), channels, height, width, dtype=torch.uint8)
                    for number, image in enumerate(part, first):  # one at a time: a second copy is of one image
                        data = bytearray(member.read(size))
                        if len(data) != size:
                            raise _corrupt(self.path, f"{IMAGES} ends within image {number}")
                        pixels = torch.frombuffer(data, dtype=torch.uint8).view(height, width, channels)
                        image.copy_(pixels.permute(2, 0, 1))
                    yield part
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise _corrupt(self.path, str(error)) from error


def open_batch(path: Path, sha256: str | None = None) -> Batch:
    """Open a batch and read its statistics. sha256: what the file must have, if known.

    Raises ArtifactError when it is missing, corrupt, another file, or not of ADM's layout.
    """
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file; expected a batch of ADM's layout (.npz with {IMAGES})")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 is not None and found != sha256:
        raise ArtifactError(f"{path}: sha256 is {found[:12]}…, expected {sha256[:12]}…; it is another reference")
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            if IMAGES not in names:
                raise ArtifactError(f"{path}: has {', '.join(sorted(names))}; expected images as {IMAGES}")
            with archive.open(f"{IMAGES}.npy") as member:
                shape = _header(path, member)
        present = [name for name in STATISTICS if name in names]
        if present and len(present) < len(STATISTICS):
            raise ArtifactError(f"{path}: has only {', '.join(present)} of {', '.join(STATISTICS)}")
        statistics = _statistics(path) if present else None
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise _corrupt(path, str(error)) from error
    return Batch(path, shape, statistics, found)


def _header(path: Path, member: IO[bytes]) -> tuple[int, int, int, int]:
    """The shape of the images; leaves ``member`` at the first of them."""
    try:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(member)
    except ValueError as error:
        raise _corrupt(path, f"{IMAGES}: {error}") from error
    if len(shape) != 4 or dtype != np.uint8 or fortran or not all(shape):
        raise ArtifactError(f"{path}: {IMAGES} is {shape} {dtype}, expected images (N, H, W, C) uint8, N > 0")
    return shape


def _statistics(path: Path) -> dict[str, Gaussian]:
    with np.load(path, allow_pickle=False) as arrays:
        mu, sigma, mu_s, sigma_s = (torch.from_numpy(arrays[name]).double() for name in STATISTICS)
    gaussians = {"pooled": Gaussian(mu, sigma, None), "spatial": Gaussian(mu_s, sigma_s, None)}
    for name, (mean, covariance, _) in gaussians.items():
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise ArtifactError(f"{path}: {name} mean {tuple(mean.shape)} with covariance {tuple(covariance.shape)}")
        if not (mean.isfinite().all() and covariance.isfinite().all()):
            raise ArtifactError(f"{path}: {name} statistics hold NaN or infinite values")
    return gaussians


def _corrupt(path: Path, what: str) -> ArtifactError:
    return ArtifactError(f"{path}: corrupt ({what}); fetch it again")
