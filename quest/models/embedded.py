"""Real images that install with a package or are drawn by a program, so that nothing has to be fetched."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from quest.config import unknown


def digits(size: int = 16) -> tuple[Tensor, Tensor]:
    """The 1,797 scanned digits of scikit-learn (UCI ML hand-written digits), resized from 8×8.

    Returns images (1797, 1, size, size) uint8, black background, and labels (1797,) int64.
    """
    import torch
    from sklearn.datasets import load_digits
    from torch.nn.functional import interpolate

    data: Any = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1) / data.images.max()
    images = interpolate(images, size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1)
    return (images * 255).round().to(torch.uint8), torch.from_numpy(data.target).long()


_SOURCES = {"digits": digits}


def labelled_images(source: str, size: int) -> tuple[Tensor, Tensor]:
    """Images (N, C, size, size) uint8 and labels (N,) int64 of an embedded ``source``. Raises ValueError if unknown."""
    if source not in _SOURCES:
        raise ValueError(f"real_images: {unknown(source, _SOURCES)}")
    return _SOURCES[source](size)


def real_images(source: str, size: int = 16) -> Tensor:
    """The images of `labelled_images` alone."""
    return labelled_images(source, size)[0]
