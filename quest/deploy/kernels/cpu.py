"""Integer products on a CPU by PyTorch's oneDNN operators, which take unsigned inputs and signed weights.

A weight of 8 bits and any zero point does not fit a signed byte. Its rest is a rank-one term, Σ (q_x - z_x) of the
window times r[o], and the sum of the window is one more output channel, whose weights are all one.

Without VNNI or AMX a CPU adds pairs of products in 16 bits, where those of 8-bit weights do not fit. `refuses` asks the
machine with the largest that there are, and leaves such layers alone.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from quest.deploy.kernels.integers import Integers, Product

_NARROW = 64  # two products of 255 and 64 fit into 16 bits


def lacking(device: torch.device) -> str | None:
    """Why it cannot run on ``device``."""
    if device.type != "cpu":
        return f"the model is on {device}"
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.onednn, "qconv2d_pointwise"):
        return "this build of PyTorch has no oneDNN"
    return None


def refuses(integers: Integers) -> str | None:
    """Why a layer cannot be computed exactly on this machine."""
    wide = int(integers.weight.int().abs().max()) > _NARROW
    return None if not wide or _exact() else "this CPU has no VNNI or AMX: sums of 8-bit products would saturate"


def make(integers: Integers) -> Product:
    """The layer as a function of codes, their scale (1,), zero point (1,) and the dtype of the output."""
    weight, scale, bias, rest = integers.weight, integers.scale, integers.bias, None
    outputs = len(weight)
    if integers.rest is not None:
        weight = torch.cat([weight, torch.ones_like(weight[:1])])
        rest = integers.rest.float() * scale
        scale = torch.cat([scale, scale.new_ones(1)])
        bias = None if bias is None else torch.cat([bias, bias.new_zeros(1)])
    product = (_linear if integers.linear else _convolution)(weight, scale, bias, integers)
    axis, shape = (-1, (-1,)) if integers.linear else (1, (1, -1, 1, 1))
    rest = None if rest is None else rest.view(shape)

    def whole(codes: Tensor, scale: Tensor, zero_point: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        y = product(codes, scale, zero_point)
        if rest is not None:
            y = torch.addcmul(y.narrow(axis, 0, outputs), y.narrow(axis, outputs, 1), rest, value=-1)
        return y.to(dtype)

    return whole


def _convolution(weight: Tensor, scale: Tensor, bias: Tensor | None, integers: Integers) -> Any:
    stride, padding, dilation = (list(each) for each in integers.geometry)
    # A zero point that is not zero makes the operator expect one; its value is given with each call.
    packed = torch.ops.onednn.qconv_prepack(weight, scale, 1.0, 1, stride, padding, dilation, 1, None)
    none = torch.zeros(len(weight), dtype=torch.int32)
    geometry = (stride, padding, dilation, 1)

    def product(codes: Tensor, x_scale: Tensor, zero_point: Tensor) -> Tensor:
        codes = codes.contiguous(memory_format=torch.channels_last)
        return torch.ops.onednn.qconv2d_pointwise.tensor(
            codes, x_scale, zero_point.to(torch.int32), packed, scale, none, bias, *geometry, *_TO_FLOATS
        )

    return product


def _linear(weight: Tensor, scale: Tensor, bias: Tensor | None, integers: Integers) -> Any:
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    none = torch.zeros(len(weight), dtype=torch.int32)

    def product(codes: Tensor, x_scale: Tensor, zero_point: Tensor) -> Tensor:
        return torch.ops.onednn.qlinear_pointwise.tensor(
            codes.contiguous(), x_scale, zero_point.to(torch.int32), packed, scale, none, bias, *_TO_FLOATS
        )

    return product


_TO_FLOATS = (1.0, 0, torch.float32, "none", [], "")
"""Scale, zero point and type of the output, and nothing that is computed of it afterwards."""


@cache
def _exact() -> bool:
    """Whether this machine adds the largest products of bytes without loss."""
    weight = torch.full((16, 32, 3, 3), -128, dtype=torch.int8)
    integers = Integers(weight, None, torch.ones(16), None, ((1, 1), (1, 1), (1, 1)), 0, 8)
    codes = torch.full((1, 32, 8, 8), 255, dtype=torch.uint8)
    found = make(integers)(codes, torch.ones(1), torch.zeros(1))
    return float(found.min()) == -128.0 * 255 * 32 * 9
