"""Integer products on a CPU by PyTorch's oneDNN operators, which take unsigned inputs and signed weights.

A weight of 8 bits and any zero point does not fit a signed byte. Its rest is a rank-one term, Σ (q_x - z_x) of the
window times r[o], and the sum of the window is one more output channel, whose weights are all one.

Without VNNI or AMX a CPU adds pairs of products in 16 bits, where those of 8-bit weights do not fit. The machine is
asked with the largest; if they are wrong, a weight is 2·h + l, twice as many output channels of small weights.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from quest.deploy.kernels.integers import Integers, output_size

_NARROW = 64  # two products of 255 and 64 fit into 16 bits


def lacking(device: torch.device) -> str | None:
    """Why it cannot run on ``device``."""
    if device.type != "cpu":
        return f"the model is on {device}"
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.onednn, "qconv2d_pointwise"):
        return "this build of PyTorch has no oneDNN"
    return None


def refuses(integers: Integers) -> str | None:
    """It computes every layer."""
    return None


class Product(nn.Module):
    """A layer as a function of codes less their zero point, their scale (1,), zero point (1,) and the dtype of the
    output.

    halves: whether weights are computed as 2·h + l; where they must be, unless said.
    """

    def __init__(self, integers: Integers, halves: bool | None = None):
        super().__init__()
        weight, scale, bias, self._rest = integers.weight, integers.scale, integers.bias, None
        self._outputs, self._axis = len(weight), -1 if integers.linear else 1
        if halves is None:
            halves = int(weight.int().abs().max()) > _NARROW and not _exact()
        self._halves = halves
        further = []
        if halves:
            further.append((weight & 1, scale))
            weight, scale = weight >> 1, 2 * scale
        if integers.rest is not None:
            self._rest = (integers.rest.float() * integers.scale).view((-1,) if integers.linear else (1, -1, 1, 1))
            further.append((torch.ones_like(weight[:1]), scale.new_ones(1)))
        if further:
            weight, scale = (torch.cat([first, *more]) for first, *more in zip((weight, scale), *further, strict=True))
            bias = None if bias is None else torch.cat([bias, bias.new_zeros(len(weight) - len(bias))])
        self._scale, self._bias = scale, bias
        self._no_zero_points = torch.zeros(len(weight), dtype=torch.int32)
        self._geometry: list[int] = []
        if integers.linear:
            self._packed = torch.ops.onednn.qlinear_prepack(weight, None)
        else:
            self._geometry = [*itertools.chain(*integers.geometry), *weight.shape[2:]]
            # A zero point that is not zero makes the operator expect one; its value is given with each call.
            self._packed = torch.ops.onednn.qconv_prepack(weight, scale, 1.0, 1, *_place(self._geometry), None)

    def forward(self, whole: Tensor, scale: Tensor, zero_point: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        form = torch.channels_last if self._geometry else torch.contiguous_format
        codes = (whole + zero_point).to(torch.uint8).contiguous(memory_format=form)
        weight = self._packed, self._scale, self._no_zero_points, self._bias
        product = integer_product if torch.compiler.is_compiling() else _product
        y = product(codes, scale, zero_point.to(torch.int32), *weight, self._geometry)
        own = y.narrow(self._axis, 0, self._outputs)
        if self._halves:
            own = own + y.narrow(self._axis, self._outputs, self._outputs)
        if self._rest is not None:
            own = torch.addcmul(own, y.narrow(self._axis, -1, 1), self._rest, value=-1)
        return own.to(dtype)


make = Product
_TO_FLOATS = (1.0, 0, torch.float32, "none", [], "")
"""Scale, zero point and type of the output, and nothing that is computed of it afterwards."""


def _product(
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    no_zero_points: Tensor,
    bias: Tensor | None,
    geometry: list[int],
) -> Tensor:
    """oneDNN's product of codes and a packed weight, float32. geometry: stride, padding, dilation and window, each
    twice; empty of a linear layer."""
    weights = weight, weight_scale, no_zero_points, bias
    if not geometry:
        return torch.ops.onednn.qlinear_pointwise.tensor(codes, scale, zero_point, *weights, *_TO_FLOATS)
    operator = torch.ops.onednn.qconv2d_pointwise.tensor
    return operator(codes, scale, zero_point, *weights, *_place(geometry), *_TO_FLOATS)


def _place(geometry: list[int]) -> tuple[list[int], list[int], list[int], int]:
    """As oneDNN takes them: stride, padding, dilation and one group."""
    return geometry[:2], geometry[2:4], geometry[4:6], 1


# For compilers, which take oneDNN's operators apart and refuse packed weights. It costs 0.1 ms a call.
integer_product = torch.library.custom_op("quest::integer_product", _product, mutates_args=())


@integer_product.register_fake
def _(codes: Tensor, *others: Any) -> Tensor:
    weight_scale, geometry = others[3], others[-1]
    if not geometry:
        return codes.new_empty((*codes.shape[:-1], len(weight_scale)), dtype=torch.float32)
    size = output_size(codes, geometry, geometry[6:])
    y = codes.new_empty((len(codes), len(weight_scale), *size), dtype=torch.float32)
    return y.contiguous(memory_format=torch.channels_last)


@cache
def _exact() -> bool:
    """Whether this machine adds the largest products of bytes without loss."""
    weight = torch.full((16, 32, 3, 3), -128, dtype=torch.int8)
    integers = Integers(weight, None, torch.ones(16), None, ((1, 1), (1, 1), (1, 1)), 8)
    whole = torch.full((1, 32, 8, 8), 255.0)
    found = make(integers, halves=False)(whole, torch.ones(1), torch.zeros(1))
    return float(found.min()) == -128.0 * 255 * 32 * 9
