"""Real images that install with a package or are drawn by a program, so that nothing has to be fetched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from quest.config.reading import unknown
from quest.embedded import shapes

SOURCES = ("digits", "shapes")
REFERENCE = "reference"


def labelled_images(
    source: str,
    size: int,
    number: int = 10_000,
    stream: str = REFERENCE,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Images (N, C, size, size) uint8 and labels (N,) int64 of an embedded ``source``. Raises ValueError if unknown.

    number and stream: how many pictures are drawn, and which, where a program draws them (`quest.embedded.shapes`);
    digits are always all of them.
    """
    if source not in SOURCES:
        raise ValueError(f"real_images: {unknown(source, SOURCES)}")
    if source == "shapes":
        return shapes.draw(stream, range(number), size, device)
    images, labels = digits(size)
    return images.to(device), labels.to(device)


def real_images(source: str, size: int = 16, number: int = 10_000) -> Tensor:
    """The images of `labelled_images` alone, those of the reference."""
    return labelled_images(source, size, number)[0]


def captions(source: str | None) -> Sequence[str]:
    """The caption of each label. Raises ValueError for a source that has none."""
    if source != "shapes":
        raise ValueError(f"real_images: {source} has no captions; shapes has")
    return shapes.CAPTIONS


def classes(source: str | None, labels: Tensor) -> Tensor:
    """The class that a class-conditional model is told for each label."""
    return shapes.class_of(labels) if source == "shapes" else labels


def digits(size: int = 16) -> tuple[Tensor, Tensor]:
    """The 1,797 scanned digits of scikit-learn (UCI ML hand-written digits), resized from 8×8.

    Returns images (1797, 1, size, size) uint8, black background, and labels (1797,) int64.
    """
    from sklearn.datasets import load_digits
    from torch.nn.functional import interpolate

    data: Any = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1) / data.images.max()
    images = interpolate(images, size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1)
    return (images * 255).round().to(torch.uint8), torch.from_numpy(data.target).long()
