"""Group norms, and the codes of images, in kernels that read a channels-last image as it lies.

A compiler fuses these as well, but reads an image a group of channels at a time, a few bytes of each pixel, and works
out the norm anew for every pixel. Here the norm of a channel is a factor and a term, known before the second pass:
    code = round(SiLU(x·factor + term) / (scale·multiple)) less the zero point, clamped, times the multiple.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn


def given(norm: nn.GroupNorm, x: Tensor, added: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The norm of x + added as a factor and a term of each channel, (N, C) float32. x: (N, C, H, W); added: (N, C)."""
    return norm_terms(x, norm.weight, norm.bias, added, norm.num_groups, norm.eps)


def fits(norm: Any) -> bool:
    """Whether it is a group norm that `given` takes."""
    return isinstance(norm, nn.GroupNorm) and norm.weight is not None


@torch.library.custom_op("quest::norm_terms", mutates_args=())
def norm_terms(
    x: Tensor, weight: Tensor, bias: Tensor, added: Tensor | None, groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    """See `given`. weight, bias: (C,)."""
    kernels: Any = importlib.import_module("quest.deploy.kernels._triton_norm")
    x = x.contiguous(memory_format=torch.channels_last)
    images, channels, height, width = x.shape
    pixels = height * width
    block = kernels.moments_block(pixels)
    chunks, blocks = -(-pixels // block["SIZE"]), -(-channels // block["BLOCK"])
    mean, spread = x.new_empty((2, images, chunks, channels), dtype=torch.float32)
    factor, term = _terms(x), _terms(x)
    power = importlib.import_module("triton").next_power_of_2
    with torch.cuda.device_of(x):
        kernels.moments[(images * chunks * blocks,)](x, mean, spread, pixels, channels, chunks, **block)
        kernels.affine[(images * groups,)](
            mean, spread, weight, bias, x if added is None else added.contiguous(), factor, term,
            pixels, channels, chunks, groups, eps, SIZE=block["SIZE"], ADDED=added is not None,
            CHUNKS=power(chunks), BLOCK=power(channels // groups), num_warps=1,
        )  # fmt: skip
    return factor, term


@norm_terms.register_fake
def _(x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return _terms(x), _terms(x)


def _terms(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=torch.float32)


@torch.library.custom_op("quest::codes", mutates_args=())
def codes(
    x: Tensor,
    factor: Tensor | None,
    term: Tensor | None,
    scale: Tensor,
    zero_point: Tensor,
    multiple: Tensor | None,
    code_of_zero: Tensor,
    active: bool,
    up: int,
    bounds: list[int],
    border: list[int],
    sums: bool,
) -> tuple[Tensor, Tensor]:
    """Codes less 128, (N, C, H, W) int8 in channels-last layout, of an image, and their sums over channels (N, H, W)
    int32, or none of them; both with the border.

    x: (N, C, H, W). factor, term: (N, C), of its norm, if it has one. scale: (1,) float32; zero_point: (1,) or (C,);
    multiple: (C,), of the scale; code_of_zero: (1,), what a product has for zero, 0 to 255. active: whether SiLU
    follows the norm. up: how often each pixel is there, beside and above. bounds: the lowest code and the highest.
    border: pixels beside and above.
    """
    kernels: Any = importlib.import_module("quest.deploy.kernels._triton_norm")
    x = x.contiguous(memory_format=torch.channels_last)
    images, channels, height, width = x.shape
    found, seen = _empty(x, up, border, sums)
    pixels = found.shape[2] * found.shape[3]
    block = kernels.codes_block(images, pixels, channels)
    beside, above = border
    with torch.cuda.device_of(x):
        kernels.codes_of[(images * -(-pixels // block["ROWS"]),)](
            x, scale if factor is None else factor, scale if term is None else term, scale, zero_point,
            scale if multiple is None else multiple, code_of_zero, found, seen,
            height, width, channels, above, beside, *bounds, NORMED=factor is not None, ACTIVE=active, UP=up,
            MANY=zero_point.numel() > 1, MULTIPLIED=multiple is not None, SUMS=sums, **block,
        )  # fmt: skip
    return found, seen


@codes.register_fake
def _(x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    up, _, border, sums = others[-4:]
    return _empty(x, up, border, sums)


def _empty(x: Tensor, up: int, border: list[int], sums: bool) -> tuple[Tensor, Tensor]:
    images, channels, height, width = x.shape
    beside, above = border
    size = up * height + 2 * above, up * width + 2 * beside
    shape = (images, channels, *size)
    found = torch.empty(shape, dtype=torch.int8, device=x.device, memory_format=torch.channels_last)
    return found, x.new_empty((images, *size) if sums else (0,), dtype=torch.int32)
