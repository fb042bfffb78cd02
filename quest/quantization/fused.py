"""Fake quantization of activations in one pass over them, on NVIDIA GPUs by Triton.

The plain operations of `quest.quantization.grid` read and write a tensor a dozen times, and launch as many kernels. The
values here are the same to the bit; derivatives by scale and zero point are the same sums in another order.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

_BLOCK = 2048  # elements that one program works on
_TOGETHER = 32  # channels of one program, where those of a sample lie side by side


class _Layout(NamedTuple):
    """x as (outer, channels, inner), a scale for each channel."""

    outer: int
    channels: int
    inner: int


def layout(x: Tensor, scale: Tensor) -> _Layout | None:
    """How to go through ``x``; None where the plain operations must do it."""
    if x.device.type != "cuda" or x.dtype != torch.float32 or scale.dtype != torch.float32 or not x.is_contiguous():
        return None
    axes = [axis for axis, size in enumerate(scale.shape) if size != 1]
    if not x.numel() or scale.ndim != x.ndim or _kernels() is None:
        return None
    if not axes:
        return _Layout(x.numel(), 1, 1)
    first, last = axes[0], axes[-1] + 1  # samples and channels together are channels as well
    if scale.shape[first:last] != x.shape[first:last]:
        return None
    return _Layout(x.shape[:first].numel(), x.shape[first:last].numel(), x.shape[last:].numel())


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, bounds: tuple[int, int], over: _Layout) -> Tensor:
    """``x`` on the grid."""
    out = torch.empty_like(x)
    with torch.cuda.device(x.device):
        programs = (-(-x.numel() // _BLOCK),)
        _kernels().quantize[programs](
            *(x, scale.contiguous(), zero_point.contiguous(), out, x.numel(), over.channels, over.inner, *bounds),
            ONE=over.channels == 1,
            BLOCK=_BLOCK,
        )
    return out


def derivatives(
    gradient: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor, bounds: tuple[int, int], over: _Layout
) -> tuple[Tensor, Tensor, Tensor]:
    """By x, scale and zero point; those of a channel are summed within programs first, then over them."""
    gradient = gradient.contiguous()
    together = _TOGETHER if over.inner == 1 and over.channels > 1 else 1
    rows, size = _BLOCK // together, over.outer * over.inner  # of each channel
    blocks, groups = -(-size // rows), -(-over.channels // together)
    to_x = torch.empty_like(x)
    sums = torch.empty(2, blocks, over.channels, device=x.device)
    with torch.cuda.device(x.device):
        _kernels().derive[(blocks, groups)](
            *(gradient, x, scale.contiguous(), zero_point.contiguous(), to_x, sums[0], sums[1]),
            *(size, over.channels, over.inner, *bounds),
            ROWS=rows,
            TOGETHER=together,
        )
    to_scale, to_zero_point = sums.sum(1)
    return to_x, to_scale.view_as(scale), to_zero_point.view_as(zero_point)


@cache
def _kernels() -> Any:
    """Compiled at first use; None where Triton is not there, as on machines without a GPU."""
    try:
        from quest.quantization import fused_kernels
    except ImportError:
        return None
    return fused_kernels
