"""The kernel of `quest.deploy.kernels.triton`, apart from it because it is compiled from its source."""

# pyright: reportOperatorIssue=false
# In a kernel a constexpr is a number; Triton's versions differ in what they tell a type checker.
from __future__ import annotations

import triton
import triton.language as tl


def block(rows: int, outputs: int, channels: int) -> dict[str, int]:
    """Sizes of the blocks for a product of so many rows, output channels and bytes of channels: large ones where there
    is enough to do, small ones where few blocks would leave most of a GPU idle."""
    inner = 128 if channels % 128 == 0 else 64 if channels % 64 == 0 else 32
    if rows * outputs >= 2**21:
        return {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": inner, "num_warps": 8, "num_stages": 4}
    if rows * outputs >= 2**18:
        return {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": inner, "num_warps": 4, "num_stages": 4}
    return {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": inner, "num_warps": 4, "num_stages": 4}


@triton.jit
def _inputs(codes, base, inside, channel, limit, zero):
    """A tile of inputs (rows, channels) as signed bytes; that of zero beyond the border, 0 beyond the channels."""
    tile = tl.load(codes + base[:, None] + channel[None, :], (inside[:, None]) & (channel[None, :] < limit), other=0)
    tile = (tile.to(tl.int16) - 128).to(tl.int8)
    tile = tl.where(inside[:, None], tile, zero)
    return tl.where(channel[None, :] < limit, tile, 0).to(tl.int8)


@triton.jit
def convolution(
    codes, scale, zero_point, weight, shift, sums, weight_scale, bias, rest, residual, y,
    rows, outputs, channels, height, width, out_height, out_width,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    R: tl.constexpr, S: tl.constexpr, FILLED: tl.constexpr, NARROW: tl.constexpr,
    REST: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One block of the output; see the module `triton`. FILLED: bytes of channels in a row of the weight."""
    columns = tl.cdiv(outputs, BLOCK_N)
    m = (tl.program_id(0) // columns) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (tl.program_id(0) % columns) * BLOCK_N + tl.arange(0, BLOCK_N)
    image = m // (out_height * out_width)
    top = (m // out_width) % out_height * stride_h - pad_h
    left = m % out_width * stride_w - pad_w
    zero = tl.load(zero_point).to(tl.int32) - 128
    zero_byte = zero.to(tl.int8)

    smallest = tl.load(shift + n, n < outputs, other=0).to(tl.int16)[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    seen = tl.zeros((BLOCK_M,), dtype=tl.int32)
    blocks: tl.constexpr = (FILLED + BLOCK_K - 1) // BLOCK_K
    for index in range(R * S * blocks):  # one loop, so that loads are under way from one window to the next
        window = index // blocks
        i = top + window // S * dilation_h
        j = left + window % S * dilation_w
        inside = (m < rows) & (i >= 0) & (i < height) & (j >= 0) & (j < width)
        base = ((image * height + i) * width + j) * channels
        row = weight + (n * (R * S) + window) * FILLED
        k = index % blocks * BLOCK_K + tl.arange(0, BLOCK_K)
        known = (n[None, :] < outputs) & (k[:, None] < FILLED)
        if NARROW:
            pair = tl.load(row[None, :] + k[:, None], known, other=0)
            first = _inputs(codes, base, inside, k, tl.minimum(channels, FILLED), zero_byte)
            second = _inputs(codes, base + FILLED, inside, k, tl.minimum(FILLED, channels - FILLED), zero_byte)
            low = ((pair & 15).to(tl.int16) + smallest).to(tl.int8)
            high = ((pair >> 4).to(tl.int16) + smallest).to(tl.int8)
            total = tl.dot(first, low, total, out_dtype=tl.int32)
            total = tl.dot(second, high, total, out_dtype=tl.int32)
        else:
            tile = tl.load(row[None, :] + k[:, None], known, other=0)
            first = _inputs(codes, base, inside, k, channels, zero_byte)
            total = tl.dot(first, tile, total, out_dtype=tl.int32)
            if REST:
                seen += tl.sum(first.to(tl.int32), 1)

    there = n < outputs
    total -= zero * tl.load(sums + n, there, other=0)[None, :]
    if REST:
        total -= (seen - zero * (R * S * channels))[:, None] * tl.load(rest + n, there, other=0)[None, :]
    found = total.to(tl.float32) * (tl.load(scale) * tl.load(weight_scale + n, there, other=0.0))[None, :]
    if BIAS:
        found += tl.load(bias + n, there, other=0.0)[None, :]
    place = m[:, None] * outputs + n[None, :]
    kept = (m[:, None] < rows) & there[None, :]
    if RESIDUAL:
        found += tl.load(residual + place, kept, other=0.0).to(tl.float32)
    tl.store(y + place, found, kept)
