"""The kernels of `quest.deploy.kernels.triton`, apart from it because they are compiled from their source.

Both hold their sums as (output channels, pixels): weights are the left operand, which tensor cores take from registers
as well, where 4-bit weights are unpacked; pixels are the right one, which they take from shared memory alone.
"""

# pyright: reportOperatorIssue=false, reportIndexIssue=false, reportGeneralTypeIssues=false
# In a kernel a constexpr is a number; Triton's versions differ in what they tell a type checker.
from __future__ import annotations

import triton
import triton.language as tl

_SMALL_WAVE, _WAVE = 90, 132  # blocks that keep a GPU of this size busy, barely and well
# Of one number, anywhere in a table of all layers': where it lies is no reason to compile a kernel again.
_NUMBERS = ["scale", "zero_point", "q_scale", "k_scale", "v_scale", "p_scale"]
_INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))  # pyright: ignore[reportAttributeAccessIssue]


def block(rows: int, outputs: int, channels: int, narrow: bool) -> dict[str, int]:
    """Sizes of the blocks for `convolution_copied`: rows × outputs sums, each over the channels of every place of
    a window. Large ones where there is enough to do, small ones where few blocks would leave most of a GPU idle; chosen
    from the times of ten such blocks for the 17 commonest layers of LDM-4 on an H200, of which these take at most 2 %
    more in all than the best block of each, at batches 50 and 1."""

    def blocks(pixels: int, columns: int) -> int:
        return -(-rows // pixels) * -(-outputs // columns)

    def sizes(pixels: int, columns: int, inner: int, warps: int, stages: int) -> dict[str, int]:
        return {"BLOCK_M": pixels, "BLOCK_N": columns, "BLOCK_K": inner, "num_warps": warps, "num_stages": stages}

    whole = channels % 128 == 0
    if blocks(128, 128) >= 1.4 * _WAVE:  # two of them run beside each other
        if narrow:
            return sizes(128, 128, 64, 4, 4)
        wasted = -(-outputs // 128) * 128 / outputs - 1  # sums that are of no channel
        if wasted > 0.2 or (wasted > 0.1 and not whole):
            return sizes(256, 64, 64, 4, 4)
        return sizes(128, 128, 128, 8, 3) if whole else sizes(128, 128, 64, 4, 4)
    if blocks(128, 64) >= _WAVE:
        return sizes(128, 64, 128, 4, 4)
    if blocks(64, 64) >= _SMALL_WAVE:
        return sizes(64, 64, 128, 4, 4)
    return sizes(32, 64, 128, 4, 4) if narrow else sizes(32, 64, 256, 4, 3)


def loaded_block(rows: int, outputs: int) -> dict[str, int]:
    """The same for `convolution_loaded`, small enough for the shared memory of any GPU that it runs on."""
    for pixels, columns, warps in ((128, 128, 8), (64, 64, 4)):
        if -(-rows // pixels) * -(-outputs // columns) >= _WAVE:
            return {"BLOCK_M": pixels, "BLOCK_N": columns, "BLOCK_K": 64, "num_warps": warps, "num_stages": 3}
    return {"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3}


def attention_block(tokens: int, context: int, width: int) -> dict[str, int]:
    """Sizes of the blocks for `attention`: of rows, keys, and channels of a head. Keys and values of wide heads are
    fewer, to fit the shared memory of any GPU that it runs on."""
    wide = max(16, triton.next_power_of_2(width))
    rows = 128 if tokens >= 128 and wide <= 64 else 64
    keys = min(64 if wide <= 128 else 32, max(16, triton.next_power_of_2(context)))
    stages = 3 if wide <= 64 else 2
    return {"BLOCK_M": rows, "BLOCK_N": keys, "BLOCK_D": wide, "num_warps": rows // 16, "num_stages": stages}


@triton.jit
def _halves(pair, offset):
    """The two weights of each byte of ``pair``, less the zero point of its channel, as signed bytes.

    offset: 128 less the zero point, which does not carry from one byte to the next; turning the highest bit takes the
    128 off. Four bytes at a time."""
    if _INTERPRETED:
        low = (((pair & 15) + offset) ^ 128).to(tl.int8, bitcast=True)
        high = (((pair >> 4) + offset) ^ 128).to(tl.int8, bitcast=True)
    else:
        low, high = tl.inline_asm_elementwise(
            """{
            .reg .b32 low, high;
            and.b32 low, $2, 0x0F0F0F0F;
            shr.u32 high, $2, 4;
            and.b32 high, high, 0x0F0F0F0F;
            add.u32 low, low, $3;
            add.u32 high, high, $3;
            xor.b32 $0, low, 0x80808080;
            xor.b32 $1, high, 0x80808080;
            }""",
            "=r,=r,r,r",
            [pair, offset],
            dtype=(tl.int8, tl.int8),
            is_pure=True,
            pack=4,
        )
    return low, high


@triton.jit
def _finish(
    total, pixel, first, inside, n, there, scale, zero_point, whole, weight_scale, bias, rest, sums, residual, y,
    outputs, channels, down, beside,
    R: tl.constexpr, S: tl.constexpr, REST: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Take off what is of zero points, scale, add, and store. total: (rows, channels) sums of codes less 128; pixel:
    (rows,) places in the output; first: (rows,) places in the input where their windows begin. down, beside: from a
    place of the window to the next one. What is read for each pixel, or for each channel, is all that a sum needs: an
    epilogue that reads for each sum takes as long as the products."""
    zero = tl.load(zero_point).to(tl.int32) - 128
    total -= (zero * tl.load(whole + n, there, other=0))[None, :]
    if REST:
        seen = tl.zeros_like(first) - zero * (R * S * channels)
        for window in tl.static_range(R * S):
            seen += tl.load(sums + first + (window // S * down + window % S * beside), inside, other=0)
        total -= seen[:, None] * tl.load(rest + n, there, other=0)[None, :]
    found = total.to(tl.float32) * (tl.load(scale) * tl.load(weight_scale + n, there, other=0.0))[None, :]
    if BIAS:
        found += tl.load(bias + n, there, other=0.0)[None, :]
    place = pixel[:, None] * outputs + n[None, :]
    kept = inside[:, None] & there[None, :]
    if RESIDUAL:
        found += tl.load(residual + place, kept, other=0.0).to(tl.float32)
    tl.store(y + place, found.to(y.dtype.element_ty), kept)


@triton.jit(do_not_specialize_on_alignment=_NUMBERS)
def convolution_copied(
    codes, more_codes, weight, scale, zero_point, offset, whole, weight_scale, bias, rest, sums, residual, y,
    images, outputs, channels, filled, height, width, out_height, out_width,
    stride_h, stride_w, dilation_h, dilation_w,
    R: tl.constexpr, S: tl.constexpr, NARROW: tl.constexpr, REST: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, IMAGES: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One block of the output, of IMAGES × HIGH × WIDE pixels, where strides are 1: Hopper's copy engine fetches the
    block of the input that a place of the window meets. Three descriptors: of
    the codes, of the second half of their channels, and of the weights, whose rows have ``filled`` bytes a place."""
    pixels: tl.constexpr = IMAGES * HIGH * WIDE
    columns, across, down = tl.cdiv(outputs, BLOCK_N), tl.cdiv(out_width, WIDE), tl.cdiv(out_height, HIGH)
    tile = tl.program_id(0) // columns
    first_n = (tl.program_id(0) % columns) * BLOCK_N
    first_q, first_p = tile % across * WIDE, tile // across % down * HIGH
    first_image = tile // (across * down) * IMAGES
    n = first_n + tl.arange(0, BLOCK_N)
    there = n < outputs
    smallest = tl.load(offset + n, there, other=0)[:, None] if NARROW else 0
    total = tl.zeros((BLOCK_N, pixels), dtype=tl.int32)
    blocks = tl.cdiv(filled, BLOCK_K)
    for index in range(R * S * blocks):  # one loop, so that copies are under way from one place to the next
        window, k = index // blocks, index % blocks * BLOCK_K
        i, j = first_p + window // S * dilation_h, first_q + window % S * dilation_w
        left = weight.load([first_n, window * filled + k])
        right = codes.load([first_image, i, j, k]).reshape(pixels, BLOCK_K)
        if NARROW:
            low, high = _halves(left, smallest)
            more = more_codes.load([first_image, i, j, k]).reshape(pixels, BLOCK_K)
            total = tl.dot(low, right.T, total, out_dtype=tl.int32)
            total = tl.dot(high, more.T, total, out_dtype=tl.int32)
        else:
            total = tl.dot(left, right.T, total, out_dtype=tl.int32)
    m = tl.arange(0, pixels)
    image, p, q = first_image + m // (HIGH * WIDE), first_p + m // WIDE % HIGH, first_q + m % WIDE
    inside = (image < images) & (p < out_height) & (q < out_width)
    _finish(
        tl.trans(total), (image * out_height + p) * out_width + q, (image * height + p) * width + q, inside, n, there,
        scale, zero_point, whole, weight_scale, bias, rest, sums, residual, y,
        outputs, channels, dilation_h * width, dilation_w, R, S, REST, BIAS, RESIDUAL,
    )  # fmt: skip


@triton.jit(do_not_specialize_on_alignment=_NUMBERS)
def convolution_loaded(
    codes, weight, scale, zero_point, offset, whole, weight_scale, bias, rest, sums, residual, y,
    images, outputs, channels, filled, height, width, out_height, out_width,
    stride_h, stride_w, dilation_h, dilation_w,
    R: tl.constexpr, S: tl.constexpr, NARROW: tl.constexpr, REST: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One block of the output, of BLOCK_M pixels, for any stride and any GPU: each thread loads its inputs."""
    columns = tl.cdiv(outputs, BLOCK_N)
    m = (tl.program_id(0) // columns) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (tl.program_id(0) % columns) * BLOCK_N + tl.arange(0, BLOCK_N)
    there = n < outputs
    image, p, q = m // (out_height * out_width), m // out_width % out_height, m % out_width
    within = image < images
    smallest = tl.load(offset + n, there, other=0)[:, None] if NARROW else 0
    total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.int32)
    blocks = tl.cdiv(filled, BLOCK_K)
    for index in range(R * S * blocks):
        window, k = index // blocks, index % blocks * BLOCK_K + tl.arange(0, BLOCK_K)
        i, j = p * stride_h + window // S * dilation_h, q * stride_w + window % S * dilation_w
        at = codes + ((image * height + i) * width + j)[:, None] * channels + k[None, :]
        row = weight + (n * (R * S) + window)[:, None] * filled + k[None, :]
        left = tl.load(row, there[:, None] & (k < filled)[None, :], other=0)
        right = tl.load(at, within[:, None] & (k < tl.minimum(channels, filled))[None, :], other=0)
        if NARROW:
            low, high = _halves(left, smallest)
            second = (k < filled) & (k < channels - filled)
            more = tl.load(at + filled, within[:, None] & second[None, :], other=0)
            total = tl.dot(low, tl.trans(right), total, out_dtype=tl.int32)
            total = tl.dot(high, tl.trans(more), total, out_dtype=tl.int32)
        else:
            total = tl.dot(left, tl.trans(right), total, out_dtype=tl.int32)
    _finish(
        tl.trans(total), m, (image * height + p * stride_h) * width + q * stride_w, within, n, there,
        scale, zero_point, whole, weight_scale, bias, rest, sums, residual, y,
        outputs, channels, dilation_h * width, dilation_w, R, S, REST, BIAS, RESIDUAL,
    )  # fmt: skip


@triton.jit
def _scores(q, k, at, columns, context, width, factor, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """Scores (rows, BLOCK_N) of the keys from ``columns`` on, in powers of two; minus infinity beyond the context."""
    n, d = columns + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    keys = tl.load(k + at + n[:, None] * width + d[None, :], (n < context)[:, None] & (d < width)[None, :], other=0.0)
    return tl.where((n < context)[None, :], tl.dot(q, tl.trans(keys)) * factor, -float("inf"))


@triton.jit(do_not_specialize_on_alignment=_NUMBERS)
def attention(
    q, k, v, q_scale, k_scale, v_scale, p_scale, y, tokens, context, width, factor, most,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows of one head: see `quest.deploy.kernels.attention`. most: the largest code of a probability."""
    blocks = tl.cdiv(tokens, BLOCK_M)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    m, d = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    own = head * tokens * width + m[:, None] * width + d[None, :]
    kept = (m < tokens)[:, None] & (d < width)[None, :]
    queries = tl.load(q + own, kept, other=0.0)
    at = head * context * width
    factor = factor * tl.load(q_scale) * tl.load(k_scale)
    highest, total = tl.full((BLOCK_M,), -float("inf"), tl.float32), tl.zeros((BLOCK_M,), tl.float32)
    for columns in range(0, context, BLOCK_N):
        scores = _scores(queries, k, at, columns, context, width, factor, BLOCK_N, BLOCK_D)
        higher = tl.maximum(highest, tl.max(scores, 1))
        total = total * tl.exp2(highest - higher) + tl.sum(tl.exp2(scores - higher[:, None]), 1)
        highest = higher
    step = tl.load(p_scale)
    codes_of_one = 1.0 / (total * step)
    found = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for columns in range(0, context, BLOCK_N):  # again: a probability has its code once the whole sum is known
        scores = _scores(queries, k, at, columns, context, width, factor, BLOCK_N, BLOCK_D)
        shares = tl.exp2(scores - highest[:, None]) * codes_of_one[:, None]
        # To the nearest whole number, of two the even one: what float32 does beyond 2^23.
        codes = tl.minimum((shares + 8388608.0) - 8388608.0, most)
        n = columns + tl.arange(0, BLOCK_N)
        values = tl.load(
            v + at + n[:, None] * width + d[None, :], (n < context)[:, None] & (d < width)[None, :], other=0.0
        )
        found = tl.dot(codes.to(values.dtype), values, found)
    tl.store(y + own, (found * (tl.load(v_scale) * step)).to(y.dtype.element_ty), kept)
