"""Images as a page carries them: the images of a cell one below another in one picture, as a data URI."""

from __future__ import annotations

import base64
import io
import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_PIXELS = 128  # side of a carried image; larger ones are made smaller
_AVIF = {"quality": 90, "subsampling": "4:4:4", "speed": 8}
"""About 40 dB to the original at a quarter of the PNG's bytes; with coarser colours, as is AVIF's and WebP's default,
it would be 29 dB, no more than what quantization itself changes."""


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


def sprite(images: NDArray[np.uint8], exact: bool = True) -> str:
    """Images (N, C, H, W), one below another, as a data URI: of a PNG, which changes no value, or else of an AVIF."""
    count, channels, height, width = images.shape
    column = images.transpose(0, 2, 3, 1).reshape(count * height, width, channels)
    picture = Image.fromarray(column[..., 0] if channels == 1 else column)
    file = io.BytesIO()
    if exact:
        picture.save(file, "png", compress_level=9)
    else:
        picture.save(file, "avif", **_AVIF)
    return f"data:image/{'png' if exact else 'avif'};base64,{base64.b64encode(file.getvalue()).decode()}"


def psnr(images: NDArray[np.uint8], targets: NDArray[np.uint8]) -> list[float | None]:
    """PSNR of each of ``images`` (N, C, H, W) to that of ``targets``, in dB to one digit; None where they are equal."""
    count = min(len(images), len(targets))
    errors = images[:count].astype(np.float64) - targets[:count]
    squares = np.square(errors).mean((1, 2, 3)) / 255**2
    return [round(-10 * math.log10(square), 1) if square else None for square in squares]
