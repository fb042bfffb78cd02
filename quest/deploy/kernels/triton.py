"""Integer products on a GPU: one implicit matrix product in Triton, of convolutions and linear layers alike.

Rows are the pixels of the output, columns its channels, and the inner axis runs over the kernel's window and blocks of
input channels. Inputs are NHWC bytes; beyond the border an input has the code of zero, z_x, so that it adds nothing.
What is left of the zero points is taken off at the end, from the sums of the weights, which are known, and of the
inputs, which are added up on the way where a weight has a rest:
    Σ (q_x - z_x)·(w - r) = Σ q_x·w - z_x·Σw - r·(Σ q_x - K·z_x),   K inputs of an output.
Tensor cores take signed bytes, so that inputs and z_x are both less 128. Weights of up to 4 bits are read two to a byte
and unpacked in registers: the low halves are the first half of the input channels, the high ones the second. They are
multiplied as bytes, since the chips meant have no products of 4 bits. Scales, bias and a residual are the epilogue.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from quest.deploy.kernels.integers import Integers

_ALIGN = 16  # channels of a weight are filled up to a multiple of this


def lacking(device: torch.device) -> str | None:
    """Why it cannot run on ``device``."""
    try:
        triton: Any = importlib.import_module("triton")
    except ImportError:
        return "Triton is not installed"
    if triton.knobs.runtime.interpret:
        return None  # Triton's interpreter, for tests: on any device
    if device.type != "cuda":
        return f"the model is on {device}"
    major, _ = torch.cuda.get_device_capability(device)
    if major < 8:
        return "this GPU is older than Ampere"
    return _trouble(device)


def refuses(integers: Integers) -> str | None:
    """It computes every layer that `why_not` has nothing against."""
    return None


class Product(nn.Module):
    """A layer as a function of codes, their scale (1,), zero point (1,), the dtype of the output, and perhaps a
    residual to add to it."""

    weight: Tensor
    shift: Tensor
    sums: Tensor
    scale: Tensor
    bias: Tensor
    rest: Tensor

    def __init__(self, integers: Integers):
        super().__init__()
        weight = integers.weight if integers.weight.ndim == 4 else integers.weight[:, :, None, None]
        self._outputs, self._channels = weight.shape[:2]
        self._linear = integers.linear
        self._geometry = [*integers.geometry[0], *integers.geometry[1], *integers.geometry[2]]
        self._narrow = integers.bits <= 4 and integers.rest is None
        shift, sums = weight.int().amin((1, 2, 3)), weight.sum((1, 2, 3), dtype=torch.int32)
        filled = -(-self._channels // _ALIGN) * _ALIGN
        if self._narrow:
            # Less the smallest of their output channel, for channels of different zero points have more than 16 weights
            # together. What is filled up meets inputs that are zero.
            weight = (weight.int() - shift.view(-1, 1, 1, 1)).to(torch.uint8)
        rows = nn.functional.pad(weight.permute(0, 2, 3, 1), (0, filled - self._channels))  # (O, R, S, filled C)
        if self._narrow:
            rows = rows[..., : filled // 2] | rows[..., filled // 2 :] << 4
        none = torch.zeros(0, device=weight.device)
        tensors = {
            "weight": rows.contiguous(),
            "shift": shift,
            "sums": sums,
            "scale": integers.scale,
            "bias": none if integers.bias is None else integers.bias,
            "rest": none.to(torch.int32) if integers.rest is None else integers.rest,
        }
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(
        self,
        codes: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        dtype: torch.dtype = torch.float32,
        residual: Tensor | None = None,
    ) -> Tensor:
        x, added = codes, residual
        if self._linear:
            x = codes.reshape(-1, self._channels, 1, 1)
            added = None if residual is None else residual.reshape(-1, self._outputs, 1, 1)
        y = integer_convolution(
            x, scale, zero_point, self.weight, self.shift, self.sums, self.scale, self.bias, self.rest, added,
            self._channels, self._geometry, self._narrow, dtype,
        )  # fmt: skip
        return y.reshape(*codes.shape[:-1], self._outputs) if self._linear else y


make = Product


@torch.library.custom_op("quest::integer_convolution", mutates_args=())
def integer_convolution(
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    weight: Tensor,
    shift: Tensor,
    sums: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    rest: Tensor,
    residual: Tensor | None,
    channels: int,
    geometry: list[int],
    narrow: bool,
    dtype: torch.dtype,
) -> Tensor:
    """A convolution of codes (N, C, H, W) uint8 with packed weights; (N, O, P, Q) ``dtype`` in channels-last layout.

    scale, zero_point: (1,) float32, of the codes. weight: (O, R, S, filled C) int8, or half as many bytes of two.
    sums, weight_scale: (O,); bias, rest: (O,), or empty. geometry: stride, padding, dilation, each twice.
    narrow: two weights to a byte, each less ``shift`` (O,) int32 of its output channel.
    """
    kernels: Any = importlib.import_module("quest.deploy.kernels._triton_kernel")
    codes = codes.contiguous(memory_format=torch.channels_last)
    if codes.numel() >= 2**31:
        raise ValueError(f"codes of shape {tuple(codes.shape)}: more than 2^31 of them; draw fewer images at once")
    y = _empty(codes, weight, geometry, dtype)
    count, outputs, height, width = y.shape
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    rows = count * height * width
    block = kernels.block(rows, outputs, weight.shape[-1])
    grid = (-(-rows // block["BLOCK_M"]) * -(-outputs // block["BLOCK_N"]),)
    with torch.cuda.device_of(codes):
        kernels.convolution[grid](
            codes, scale, zero_point, weight, shift, sums, weight_scale, bias, rest,
            codes if residual is None else residual, y, rows, outputs, channels, codes.shape[2], codes.shape[3],
            height, width, *geometry,
            R=weight.shape[1], S=weight.shape[2], FILLED=weight.shape[-1], NARROW=narrow,
            REST=rest.numel() > 0, BIAS=bias.numel() > 0, RESIDUAL=residual is not None, **block,
        )  # fmt: skip
    return y


@integer_convolution.register_fake
def _(
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    weight: Tensor,
    shift: Tensor,
    sums: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    rest: Tensor,
    residual: Tensor | None,
    channels: int,
    geometry: list[int],
    narrow: bool,
    dtype: torch.dtype,
) -> Tensor:
    return _empty(codes, weight, geometry, dtype)


def _empty(codes: Tensor, weight: Tensor, geometry: list[int], dtype: torch.dtype) -> Tensor:
    sizes = [
        (codes.shape[2 + i] + 2 * geometry[2 + i] - geometry[4 + i] * (weight.shape[1 + i] - 1) - 1) // geometry[i] + 1
        for i in range(2)
    ]
    shape = (codes.shape[0], weight.shape[0], *sizes)
    return torch.empty(shape, dtype=dtype, device=codes.device, memory_format=torch.channels_last)


@cache
def _trouble(device: torch.device) -> str | None:
    """What goes wrong when Triton multiplies bytes on ``device``; None if the sums are right."""
    weight = torch.full((32, 32, 3, 3), -128, dtype=torch.int8, device=device)
    integers = Integers(weight, None, torch.ones(32, device=device), None, ((1, 1), (1, 1), (1, 1)), 8)
    codes = torch.full((1, 32, 8, 8), 255, dtype=torch.uint8, device=device)
    try:
        found: Any = make(integers)(codes, torch.ones(1, device=device), torch.zeros(1, device=device))
    except Exception as error:  # of many kinds: what a compiler says that cannot make the product
        said = " ".join(str(error).split())[:300]
        return f"Triton cannot multiply bytes on this GPU ({type(error).__name__}: {said})"
    return None if float(found.min()) == -128.0 * 255 * 32 * 9 else "Triton's sums of bytes are wrong on this GPU"
