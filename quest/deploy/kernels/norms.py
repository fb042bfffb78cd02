"""A group norm, SiLU and the making of codes, in two passes over an image: its moments, and its codes.

A compiler fuses these as well, but reads a channels-last image a group at a time, a few bytes of each pixel, and works
out every norm anew for every pixel. Here the norm of a channel is a factor and a term, known before the second pass:
    code = round(SiLU(x·factor + term) / (scale·multiple)) less the zero point, clamped, times the multiple.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("quest::normed_codes", mutates_args=())
def normed_codes(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    added: Tensor | None,
    scale: Tensor,
    zero_point: Tensor,
    multiple: Tensor | None,
    code_of_zero: Tensor,
    groups: int,
    eps: float,
    active: bool,
    bounds: list[int],
    border: list[int],
    sums: bool,
) -> tuple[Tensor, Tensor]:
    """Codes less 128, (N, C, H, W) int8 in channels-last layout, of a norm of x + added, and their sums over channels
    (N, H, W) int32, or none of them; both with the border.

    x: (N, C, H, W). weight, bias: (C,), of a norm of ``groups``. added: (N, C), to each pixel before the norm. scale:
    (1,) float32; zero_point: (1,) or (C,); multiple: (C,), of the scale; code_of_zero: (1,), what a product has for
    zero, 0 to 255. active: whether SiLU follows the norm. bounds: the lowest code and the highest. border: pixels
    beside and above an image.
    """
    kernels: Any = importlib.import_module("quest.deploy.kernels._triton_norm")
    x = x.contiguous(memory_format=torch.channels_last)
    images, channels, height, width = x.shape
    pixels = height * width
    codes, seen = _empty(x, border, sums)
    block = kernels.moments_block(images, pixels, channels)
    chunks, blocks = -(-pixels // block["SIZE"]), -(-channels // block["BLOCK"])
    mean, spread = x.new_empty((2, images, chunks, channels), dtype=torch.float32)
    factor, term = x.new_empty((2, images, channels), dtype=torch.float32)
    power = importlib.import_module("triton").next_power_of_2
    with torch.cuda.device_of(x):
        kernels.moments[(images * chunks * blocks,)](x, mean, spread, pixels, channels, chunks, **block)
        kernels.affine[(images * groups,)](
            mean, spread, weight, bias, x if added is None else added.contiguous(), factor, term,
            pixels, channels, chunks, groups, eps, SIZE=block["SIZE"], ADDED=added is not None,
            CHUNKS=power(chunks), BLOCK=power(channels // groups), num_warps=1,
        )  # fmt: skip
        beside, above = border
        block = kernels.codes_block(images, pixels, channels)
        tiles = -(-((height + 2 * above) * (width + 2 * beside)) // block["ROWS"])
        kernels.codes_of[(images * tiles,)](
            x, factor, term, scale, zero_point, scale if multiple is None else multiple, code_of_zero, codes, seen,
            height, width, channels, above, beside, *bounds, ACTIVE=active, MANY=zero_point.numel() > 1,
            MULTIPLIED=multiple is not None, SUMS=sums, **block,
        )  # fmt: skip
    return codes, seen


@normed_codes.register_fake
def _(x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    border, sums = others[-2:]
    return _empty(x, border, sums)


def _empty(x: Tensor, border: list[int], sums: bool) -> tuple[Tensor, Tensor]:
    images, channels, height, width = x.shape
    beside, above = border
    size = height + 2 * above, width + 2 * beside
    codes = torch.empty((images, channels, *size), dtype=torch.int8, device=x.device, memory_format=torch.channels_last)
    return codes, x.new_empty((images, *size) if sums else (0,), dtype=torch.int32)
