"""Images and folders of them for the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def pixels(seed: int, count: int = 60, height: int = 16, width: int = 16) -> NDArray[np.uint8]:
    """Images (count, height, width, 3) of blotches, some lighter than others."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 200, (count, height // 4, width // 4, 3))
    return (coarse.repeat(4, 1).repeat(4, 2) + generator.integers(0, 50, (count, 1, 1, 1))).astype(np.uint8)


def save_folder(folder: Path, images: NDArray[np.uint8]) -> Path:
    """``images`` as numbered PNG files."""
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:03}.png")
    return folder
