"""Images as a page carries them: the images of a cell one below another in one PNG, as a data URI."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_PIXELS = 128  # side of a carried image; larger ones are made smaller


def reduced(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images (N, C, H, W) with at most `MAX_PIXELS` a side, by means over whole squares. Raises ValueError unless they
    have 1 or 3 channels."""
    count, channels, height, width = images.shape
    if channels not in (1, 3):
        raise ValueError(f"images with {channels} channels cannot be shown; expected 1 or 3")
    factor = -(-max(height, width) // MAX_PIXELS)
    rows, columns = height // factor, width // factor
    cut = images[:, :, : rows * factor, : columns * factor]
    means = cut.reshape(count, channels, rows, factor, columns, factor).mean((3, 5))
    return means.round().astype(np.uint8)


def sprite(images: NDArray[np.uint8]) -> str:
    """Images (N, C, H, W), one below another, as the data URI of a PNG; no value is changed."""
    count, channels, height, width = images.shape
    column = images.transpose(0, 2, 3, 1).reshape(count * height, width, channels)
    file = io.BytesIO()
    Image.fromarray(column[..., 0] if channels == 1 else column).save(file, "png", compress_level=9)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
