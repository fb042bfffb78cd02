"""The kernels of `quest.deploy.kernels.norms`, apart from it because they are compiled from their source.

All read and write channels-last images, whose channels lie beside each other.
"""

# pyright: reportOperatorIssue=false, reportIndexIssue=false
# In a kernel a constexpr is a number; Triton's versions differ in what they tell a type checker.
from __future__ import annotations

import triton
import triton.language as tl

_WHOLE = tl.constexpr(12582912.0)  # 1.5·2^23: added to a float32, it leaves the nearest whole number in the lowest bits
_WHOLE_BITS = tl.constexpr(0x4B400000)  # the same, as its bits


def moments_block(pixels: int) -> dict[str, int]:
    """Sizes of the blocks for `moments`: chunks of 128 pixels, which were the fastest, or near it, of all sizes of
    LDM-4's images at batches 50 and 1 on an H200; larger ones for larger images, so that `affine` has 64 at most."""
    return {"SIZE": max(128, triton.next_power_of_2(pixels) // 64), "ROWS": 32, "BLOCK": 64, "num_warps": 4}


def codes_block(images: int, pixels: int, channels: int) -> dict[str, int]:
    """Sizes of the blocks for `codes_of`, chosen by the same measurement. Fewer rows and more channels at once where
    there is little to do, so that no block has many turns to take one after another."""
    if images * pixels >= 2**13:
        return {"ROWS": 16, "BLOCK": 64, "num_warps": 2}
    rows, block = (4, 512) if channels > 512 else (8, 256)
    return {"ROWS": rows, "BLOCK": block, "num_warps": 4}


@triton.jit
def moments(
    x, mean, spread, pixels, channels, chunks,
    SIZE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of each channel in SIZE pixels of an image: the mean, and the sum of squares of what differs from it."""
    blocks = tl.cdiv(channels, BLOCK)
    c = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    chunk, image = tl.program_id(0) // blocks % chunks, tl.program_id(0) // (blocks * chunks)
    there, first = c < channels, chunk * SIZE
    at = x + image * pixels * channels + c
    about = tl.load(at + first * channels, there, other=0.0).to(tl.float32)  # squares about it lose little
    total, squares = tl.zeros((ROWS, BLOCK), tl.float32), tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, SIZE, ROWS):
        p = first + start + tl.arange(0, ROWS)
        kept = (p < pixels)[:, None] & there[None, :]
        found = tl.load(at[None, :] + p[:, None] * channels, kept, other=0.0).to(tl.float32)
        found = tl.where(kept, found - about[None, :], 0.0)
        total += found
        squares += found * found
    count = tl.minimum(SIZE, pixels - first).to(tl.float32)
    own, place = tl.sum(total, 0), (image * chunks + chunk) * channels + c
    tl.store(mean + place, about + own / count, there)
    tl.store(spread + place, tl.sum(squares, 0) - own * own / count, there)


@triton.jit
def affine(
    mean, spread, weight, bias, added, factor, term, pixels, channels, chunks, groups, eps,
    SIZE: tl.constexpr, ADDED: tl.constexpr, CHUNKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of one group of an image: what its norm multiplies each channel by and then adds, from the moments of chunks.

    What is ``added`` to a channel before moves its mean, and so needs no pass over the pixels."""
    image, group, width = tl.program_id(0) // groups, tl.program_id(0) % groups, channels // groups
    k, c = tl.arange(0, CHUNKS), group * width + tl.arange(0, BLOCK)
    there = tl.arange(0, BLOCK) < width
    kept = (k < chunks)[:, None] & there[None, :]
    at = (image * chunks + k)[:, None] * channels + c[None, :]
    count = tl.where(kept, tl.minimum(SIZE, pixels - k * SIZE)[:, None], 0).to(tl.float32)
    own = tl.load(mean + at, kept, other=0.0)
    plus = tl.zeros((BLOCK,), tl.float32)
    if ADDED:
        plus += tl.load(added + image * channels + c, there, other=0.0).to(tl.float32)
        own += plus[None, :]
    number = (pixels * width).to(tl.float32)
    middle = tl.sum(tl.sum(count * own, 1), 0) / number
    differs = own - middle
    squares = tl.load(spread + at, kept, other=0.0) + count * differs * differs
    step = tl.rsqrt(tl.sum(tl.sum(squares, 1), 0) / number + eps)
    multiplied = tl.load(weight + c, there, other=0.0).to(tl.float32) * step
    place = image * channels + c
    tl.store(factor + place, multiplied, there)
    tl.store(term + place, tl.load(bias + c, there, other=0.0).to(tl.float32) + (plus - middle) * multiplied, there)


# Scales and zero points are parts of a table of all layers': where they lie is no reason to compile a kernel again.
@triton.jit(do_not_specialize_on_alignment=["scale", "zero_point", "multiple", "code_of_zero"])
def codes_of(
    x, factor, term, scale, zero_point, multiple, code_of_zero, codes, sums,
    height, width, channels, above, beside, low, high,
    NORMED: tl.constexpr, ACTIVE: tl.constexpr, UP: tl.constexpr, MANY: tl.constexpr, MULTIPLIED: tl.constexpr,
    SUMS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Codes less 128 of x, or where NORMED of factor·x + term, through SiLU where ACTIVE, for ROWS pixels of an image,
    each UP × UP times, with its border, which is the code of zero; and their sums over channels.

    height, width: of the image before it grows. scale: of the tensor. zero_point: of it, or where MANY of each channel.
    multiple: of each channel."""
    full_width = UP * width + 2 * beside
    pixels = (UP * height + 2 * above) * full_width
    tiles = tl.cdiv(pixels, ROWS)
    image, p = tl.program_id(0) // tiles, tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    i, j = p // full_width - above, p % full_width - beside
    within, inside = p < pixels, (i >= 0) & (i < UP * height) & (j >= 0) & (j < UP * width)
    source, place = ((image * height + i // UP) * width + j // UP) * channels, (image * pixels + p) * channels
    zero = tl.load(code_of_zero).to(tl.int32) - 128
    seen = tl.zeros((ROWS,), tl.int32)
    for start in range(0, channels, BLOCK):
        c = start + tl.arange(0, BLOCK)
        there = c < channels
        kept = inside[:, None] & there[None, :]
        own = image * channels + c
        y = tl.load(x + source[:, None] + c[None, :], kept, other=0.0).to(tl.float32)
        if NORMED:
            y = y * tl.load(factor + own, there, other=0.0)[None, :] + tl.load(term + own, there, other=0.0)[None, :]
        if ACTIVE:
            y = y * tl.sigmoid(y)
        step, nothing = tl.load(scale) + tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
        by = tl.load(multiple + c, there, other=1.0) if MULTIPLIED else 1.0
        if MULTIPLIED:
            step *= by
        nothing += tl.load(zero_point + c, there, other=0.0) if MANY else tl.load(zero_point)
        q = y * (1.0 / step)[None, :]
        q = tl.minimum(tl.maximum(q, (low - nothing)[None, :]), (high - nothing)[None, :]) + _WHOLE
        if MULTIPLIED:
            q = (q - _WHOLE) * by[None, :] + _WHOLE
        q = tl.where(kept, q.to(tl.int32, bitcast=True) + (zero - _WHOLE_BITS), zero)
        tl.store(codes + place[:, None] + c[None, :], q.to(tl.int8), within[:, None] & there[None, :])
        if SUMS:
            seen += tl.sum(tl.where(there[None, :], q, 0), 1)
    if SUMS:
        tl.store(sums + image * pixels + p, seen, within)
