"""Files as pixels: every kind that is told of, and every kind that is refused."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from quest.metrics.own import decoding
from quest.metrics.own.decoding import Refused, colour, decode

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def encoded(pixels: NDArray[np.uint8] | Image.Image, form: str = "PNG", **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def deep_png(values: NDArray[np.uint16]) -> bytes:
    """A 16-bit PNG (H, W, C) of the kind that its channels make it; Pillow writes greyscale only."""
    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_a_lossless_file_is_its_pixels_and_nothing_is_told(form: str, options: dict[str, Any]):
    pixels, told = decode(encoded(PIXELS, form, **options), 3)
    assert np.array_equal(pixels, PIXELS)
    assert told == ()


def test_a_jpeg_is_what_pillow_decodes():
    data = encoded(PIXELS, "JPEG")
    pixels, told = decode(data, 3)
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(data))))
    assert told == ()


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_greyscale_is_repeated_for_three_channels_and_itself_for_one(form: str):
    data = encoded(PIXELS[..., 0], form)
    three, told = decode(data, 3)
    one, silent = decode(data, 1)
    assert np.array_equal(three, one.repeat(3, 2))
    assert (told, silent) == ((decoding.GREYSCALE,), ())
    if form == "PNG":
        assert np.array_equal(one[..., 0], PIXELS[..., 0])


def test_black_and_white_is_greyscale():
    image = Image.fromarray(PIXELS[..., 0] > 127)
    pixels, told = decode(encoded(image), 3)
    assert image.mode == "1"
    assert np.array_equal(pixels[..., 0], np.where(PIXELS[..., 0] > 127, 255, 0))
    assert told == (decoding.GREYSCALE,)


def test_three_equal_channels_are_greyscale_where_that_is_wanted_and_colour_is_refused():
    pixels, told = decode(encoded(PIXELS[..., :1].repeat(3, 2)), 1)
    assert np.array_equal(pixels, PIXELS[..., :1])
    assert told == (decoding.THREE_EQUAL,)
    with pytest.raises(Refused) as refused:
        decode(encoded(PIXELS), 1)
    assert refused.value.reason == decoding.COLOUR


def test_a_palette_and_cmyk_are_turned_to_rgb():
    image = Image.fromarray(PIXELS).quantize(16)
    pixels, told = decode(encoded(image), 3)
    assert np.array_equal(pixels, np.asarray(image.convert("RGB")))
    assert told == (decoding.PALETTE,)
    data = encoded(Image.fromarray(PIXELS).convert("CMYK"), "JPEG")
    pixels, told = decode(data, 3)
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert told == (decoding.CMYK,)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_of_16_bits_the_high_byte_is_kept(channels: int):
    values = np.random.default_rng(1).integers(0, 2**16, (6, 5, channels), dtype=np.uint16)
    if channels == 4:
        values[..., 3] = 2**16 - 1
    pixels, told = decode(deep_png(values), 3)
    expected = (values >> 8).astype(np.uint8)
    assert np.array_equal(pixels, expected.repeat(3, 2) if channels == 1 else expected[..., :3])
    assert told[0] == decoding.SIXTEEN_BIT


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_alpha_is_dropped_where_opaque_and_refused_without_a_background(form: str):
    lossless = {"lossless": True, "exact": True} if form == "WEBP" else {}
    alpha = np.full((6, 5, 1), 255, np.uint8)
    opaque = encoded(np.concatenate([PIXELS, alpha], 2), form, **lossless)
    if form == "PNG":  # WebP stores no alpha that says nothing
        assert decode(opaque, 3)[1] == (decoding.OPAQUE,)
    assert np.array_equal(decode(opaque, 3).pixels, PIXELS)

    alpha[0, 0] = 0
    data = encoded(np.concatenate([PIXELS, alpha], 2), form, **lossless)
    with pytest.raises(Refused) as refused:
        decode(data, 3)
    assert refused.value.reason == decoding.TRANSPARENT
    pixels, told = decode(data, 3, (10, 20, 30))
    assert pixels[0, 0].tolist() == [10, 20, 30]
    assert np.array_equal(pixels[1:], PIXELS[1:])
    assert told == (decoding.COMPOSITED,)


def test_a_transparent_colour_of_a_palette_is_transparent():
    image = Image.fromarray(PIXELS).quantize(4)
    with pytest.raises(Refused) as refused:
        decode(encoded(image, transparency=0), 3)
    assert refused.value.reason == decoding.TRANSPARENT


def test_orientation_and_frames_are_told_and_change_nothing():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(PIXELS, "PNG", exif=exif), 3)[1] == (decoding.ROTATED,)
    frames = [Image.fromarray(PIXELS // 2)]
    pixels, told = decode(encoded(PIXELS, "PNG", save_all=True, append_images=frames), 3)
    assert told == (decoding.FRAMES,)
    assert np.array_equal(pixels, PIXELS)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_file_that_ends_too_early_is_broken(form: str):
    large = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(large, form)
    with pytest.raises(Refused) as refused:
        decode(data[: len(data) // 2], 3)
    assert refused.value.reason == decoding.BROKEN


@pytest.mark.parametrize("data", [b"", b"not an image", b"GIF89a", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_broken_and_the_reason_has_no_address(data: bytes):
    with pytest.raises(Refused) as refused:
        decode(data, 3)
    assert refused.value.reason == decoding.BROKEN
    assert str(refused.value)
    assert "0x" not in str(refused.value)


def test_a_flipped_bit_in_a_png_is_broken():
    data = bytearray(encoded(PIXELS))
    data[len(data) // 2] ^= 1
    with pytest.raises(Refused):
        decode(bytes(data), 3)


def test_colours_have_names_or_six_digits():
    assert colour("white") == (255, 255, 255)
    assert colour("#0a141e") == (10, 20, 30)
    with pytest.raises(ValueError, match="--background: 'whitish' is no colour; expected one like white"):
        colour("whitish")
