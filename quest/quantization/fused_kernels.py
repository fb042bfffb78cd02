"""The Triton kernels of `quest.quantization.fused`, which alone imports them."""

from __future__ import annotations

import triton  # type: ignore[import-not-found]
from triton import language as tl  # type: ignore[import-not-found]
from triton.language.extra import libdevice  # type: ignore[import-not-found]

_NAN = tl.constexpr(tl.PropagateNan.ALL)  # a number that is not one stays visible


@triton.jit
def quantize(x, scale, zero_point, out, size, channels, inner, low, high, ONE: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK elements; ONE: they all have the same scale."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = at < size
    if ONE:
        s, z = tl.load(scale), tl.load(zero_point)
    else:
        channel = (at // inner) % channels
        s, z = tl.load(scale + channel, here, 1.0), tl.load(zero_point + channel, here, 0.0)
    code = libdevice.rint(tl.div_rn(tl.load(x + at, here, 0.0), s)) + z
    code = tl.minimum(tl.maximum(code, low, propagate_nan=_NAN), high, propagate_nan=_NAN)
    tl.store(out + at, (code - z) * s, here)


@triton.jit
def derive(
    gradient, x, scale, zero_point, to_x, to_scale, to_zero_point, size, channels, inner, low, high,
    ROWS: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """ROWS of the ``size`` elements that each of TOGETHER channels has."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    own = tl.program_id(1) * TOGETHER + tl.arange(0, TOGETHER)
    channel = own[None, :]
    here = (row < size) & (channel < channels)
    at = (row // inner) * channels * inner + channel * inner + row % inner
    s, z = tl.load(scale + channel, channel < channels, 1.0), tl.load(zero_point + channel, channel < channels, 0.0)
    ratio = tl.div_rn(tl.load(x + at, here, 0.0), s)
    rounded = libdevice.rint(ratio)
    code = rounded + z
    inside = (code >= low) & (code <= high)
    g = tl.load(gradient + at, here, 0.0)
    tl.store(to_x + at, tl.where(inside, g, 0.0), here)
    clipped = tl.minimum(tl.maximum(code, low, propagate_nan=_NAN), high, propagate_nan=_NAN)
    slope = tl.where(inside, rounded - ratio, clipped - z)
    place = tl.program_id(0) * channels + own
    tl.store(to_scale + place, tl.sum(g * slope, axis=0), own < channels)
    tl.store(to_zero_point + place, tl.sum(tl.where(inside, 0.0, -g * s), axis=0), own < channels)
