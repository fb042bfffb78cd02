"""Published statistics: ``.npz`` files with a mean ``mu`` and a covariance ``sigma`` of features, and no images.

pytorch-fid and clean-fid write these two arrays; ADM's have ``mu_s`` and ``sigma_s`` of spatial features besides. None
says which network they are of, or how its input was resized: who uses them has to know.
"""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from quest.artifacts import ArtifactError
from quest.metrics.adm import IMAGES
from quest.metrics.statistics import Gaussian

ARRAYS = {"pooled": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


class Fits(NamedTuple):
    """gaussians: of "pooled" features, and of "spatial" ones where the file has them; sha256: of the file."""

    gaussians: dict[str, Gaussian]
    sha256: str


def read(path: Path) -> Fits | None:
    """The statistics of an .npz without images, in float64; None for a folder, and for a file that has images.

    Raises ArtifactError for an .npz that has neither, is corrupt, or holds what is no mean with its covariance.
    """
    if path.suffix != ".npz" or not path.is_file():
        return None
    gaussians = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if IMAGES in arrays:
                return None
            for name, (mean, covariance) in ARRAYS.items():
                if mean in arrays and covariance in arrays:
                    gaussians[name] = _checked(path, arrays[mean], arrays[covariance])
            names = ", ".join(sorted(arrays)) or "nothing"
    except ArtifactError:
        raise
    except (zipfile.BadZipFile, OSError, ValueError, EOFError) as error:
        raise ArtifactError(f"{path}: corrupt ({error}); fetch it again") from error
    if "pooled" not in gaussians:
        raise ArtifactError(f"{path}: has {names}; expected images as {IMAGES}, or statistics as mu and sigma")
    with path.open("rb") as file:
        return Fits(gaussians, hashlib.file_digest(file, "sha256").hexdigest())


def _checked(path: Path, mean: np.ndarray, covariance: np.ndarray) -> Gaussian:
    width = mean.size
    if mean.ndim != 1 or not width or covariance.shape != (width, width):
        raise ArtifactError(
            f"{path}: a mean {mean.shape} with a covariance {covariance.shape}; expected (D,) and (D, D)"
        )
    if mean.dtype.kind != "f" or covariance.dtype.kind != "f":
        raise ArtifactError(f"{path}: statistics of {mean.dtype} and {covariance.dtype}; expected floats")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ArtifactError(f"{path}: statistics hold NaN or infinite values")
    diagonal = covariance.diagonal()
    if diagonal.min() < 0 or np.abs(covariance - covariance.T).max() > 1e-4 * diagonal.max():
        raise ArtifactError(f"{path}: sigma is no covariance: it is not symmetric, or has a negative variance")
    return Gaussian(torch.from_numpy(mean).double(), torch.from_numpy(covariance).double(), None)
