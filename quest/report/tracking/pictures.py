"""Two previews beside each other, for MLflow. Never imports torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_SIDE = 400  # pixels that a grid is enlarged to, by a whole factor


def side_by_side(files: Sequence[Path]) -> NDArray[np.uint8]:
    """(height, width, 3) uint8: the images of each preview as a square grid, white between the grids.

    Place by place they start from the same noise.
    """
    grids = [_grid(_images(file)) for file in files]
    gap = np.full((grids[0].shape[0], 16, 3), 255, np.uint8)
    return np.concatenate([part for grid in grids for part in (gap, grid)][1:], axis=1)


def _images(file: Path) -> NDArray[np.uint8]:
    """(N, C, H, W) uint8."""
    from safetensors import safe_open

    with safe_open(file, framework="np") as tensors:
        return tensors.get_tensor("images")


def _grid(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    side = math.isqrt(len(images))
    images = np.repeat(images[: side * side], 3 // images.shape[1], axis=1)
    factor = max(1, _SIDE // (side * images.shape[-1]))
    images = np.pad(images.repeat(factor, 2).repeat(factor, 3), ((0, 0), (0, 0), (1, 0), (1, 0)), constant_values=255)
    _, channels, height, width = images.shape
    grid = images.reshape(side, side, channels, height, width).transpose(0, 3, 1, 4, 2)
    return np.ascontiguousarray(grid.reshape(side * height, side * width, channels))
