"""One image file as pixels: what is told of it, and why it is refused."""

from __future__ import annotations

import io
import re
import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_ORIENTATION = 0x0112  # EXIF's number of it
_PNG, _PNG_DEPTH = b"\x89PNG\r\n\x1a\n", 24  # signature; place of the bits of a channel

GREYSCALE, THREE_EQUAL, PALETTE, CMYK = "greyscale", "three equal channels", "palette", "CMYK"
SIXTEEN_BIT, OPAQUE, COMPOSITED = "16-bit", "opaque alpha", "transparent"
ROTATED, FRAMES = "EXIF orientation", "several frames"
DONE = {
    GREYSCALE: "repeated to three channels",
    THREE_EQUAL: "one was taken, as the extractor takes greyscale",
    PALETTE: "turned to RGB",
    CMYK: "turned to RGB without a colour profile",
    SIXTEEN_BIT: "the high byte was kept",
    OPAQUE: "dropped",
    COMPOSITED: "put on the background",
    ROTATED: "not applied, as in the published evaluators",
    FRAMES: "the first was taken",
}
"""What may be told of a file, and what was done with it."""

BROKEN, TRANSPARENT, COLOUR = "broken", "transparent", "in colour"
REMEDY = {
    BROKEN: "--skip-broken leaves them out",
    TRANSPARENT: "--background COLOUR (white, black, #808080, …) says what shows through",
    COLOUR: "the extractor takes greyscale: turn them to greyscale first",
}
"""Why a file may be refused, and what helps."""


class Refused(ValueError):
    """A file that is not measured as it is. reason: one of REMEDY."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(detail)
        self.reason = reason


class Picture(NamedTuple):
    """pixels (H, W, C) uint8, and what is told of the file (of DONE)."""

    pixels: NDArray[np.uint8]
    told: tuple[str, ...]


def colour(name: str) -> tuple[int, int, int]:
    """The colour that is called ``name`` in CSS or as #rrggbb. Raises ValueError for another name."""
    try:
        red, green, blue, *_ = ImageColor.getrgb(name)
    except ValueError as error:
        raise ValueError(f"--background: {name!r} is no colour; expected one like white, black or #808080") from error
    return red, green, blue


def decode(data: bytes, channels: int, background: tuple[int, int, int] | None = None) -> Picture:
    """The image in the bytes of a PNG, JPEG or WebP file, with ``channels`` 1 or 3.

    background: what shows through transparent pixels. Raises Refused.
    """
    told: list[str] = []
    try:
        image = _load(data, told)
        image = _without_alpha(image, background, told)
        pixels = _eight_bits(image, told)
    except Refused:
        raise
    except Exception as error:  # Pillow's readers raise whatever they stumble over in a damaged file
        # Without its description of the buffer, which has an address.
        raise Refused(BROKEN, re.sub(r" ?<_io\.BytesIO.*?>", "", str(error)) or type(error).__name__) from error
    return Picture(_with_channels(pixels, channels, told), tuple(told))


def _load(data: bytes, told: list[str]) -> Image.Image:
    if not data:
        raise Refused(BROKEN, "empty")
    formats = tuple(set(FORMATS.values()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large images, and of metadata that is not read here
        Image.open(io.BytesIO(data), formats=formats).verify()  # checksums, which loading does not look at
        image = Image.open(io.BytesIO(data), formats=formats)
        # Pillow does not say: it gives three 16-bit channels as 8 bits.
        if image.mode.startswith("I") or (data.startswith(_PNG) and data[_PNG_DEPTH] == 16):
            told.append(SIXTEEN_BIT)
        if getattr(image, "n_frames", 1) > 1:
            told.append(FRAMES)
        if image.getexif().get(_ORIENTATION, 1) != 1:
            told.append(ROTATED)
        image.load()
    return image


def _without_alpha(image: Image.Image, background: tuple[int, int, int] | None, told: list[str]) -> Image.Image:
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    lowest, _ = image.getchannel("A").getextrema()
    if lowest == 255:
        told.append(OPAQUE)
        return image.convert("RGB")
    if background is None:
        raise Refused(TRANSPARENT)
    told.append(COMPOSITED)
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")


def _eight_bits(image: Image.Image, told: list[str]) -> NDArray[np.uint8]:
    """The pixels (H, W, 1 or 3)."""
    if image.mode.startswith("I"):
        return (np.asarray(image) >> 8).astype(np.uint8)[..., None]
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))[..., None]
    if image.mode in ("P", "CMYK"):
        told.append(PALETTE if image.mode == "P" else CMYK)
    return np.asarray(image.convert("RGB"))


def _with_channels(pixels: NDArray[np.uint8], channels: int, told: list[str]) -> NDArray[np.uint8]:
    found = pixels.shape[2]
    if found < channels:
        told.append(GREYSCALE)
        return pixels.repeat(channels, 2)
    if found > channels:
        if (pixels != pixels[..., :1]).any():
            raise Refused(COLOUR)
        told.append(THREE_EQUAL)
        return pixels[..., :1]
    return pixels
