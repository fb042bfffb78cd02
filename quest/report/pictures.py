"""Images as one PNG, pixel for pixel, for people to look at. Equal inputs give equal bytes."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.image import imsave
from torch import Tensor
from torch.nn.functional import pad

from quest.artifacts import atomic


def save(images: Tensor, path: Path, factor: int = 2) -> None:
    """images (N, 1 or 3, H, W) uint8, as near to a square of them as can be, each enlarged by a whole ``factor``."""
    columns = math.isqrt(len(images) - 1) + 1
    rows = -(-len(images) // columns)
    cells = images.expand(-1, 3, -1, -1).repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    cells = pad(cells, (1, 1, 1, 1, 0, 0, 0, rows * columns - len(images)), value=255)
    _, channels, height, width = cells.shape
    grid = cells.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    with atomic(path) as partial:
        array = grid.reshape(rows * height, columns * width, channels).numpy()
        imsave(partial, array, format="png", metadata={"Software": ""})
