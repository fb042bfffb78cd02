"""A packed layer as what a kernel multiplies: signed bytes, with all that is not whole kept apart.

With q_x in 0 … 255 and w = q_w - z_w a whole number, a layer is
    y[o] = D_x · D_w[o] · (Σ (q_x - z_x)·(w - r[o])) + bias[o],
where r[o] is zero unless w does not fit into a signed byte: then w = q_w - 128 and r[o] = z_w[o] - 128.
Where each channel has a zero point of its own, q_x is shifted so that one is theirs all (`common_zero_point`), and no
product has to know: of few bits, what is shifted still fits a byte. Where each has a multiple as well, the product has
the codes (q_x - z_x)·m + 128 with the one scale and the zero point 128 (`middle_zero_points`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quest.deploy.packed.layers import ActivationGrid, Packed, PackedConv2d, PackedLinear, SplitGrid

RECIPE = (
    "activation scales per channel do not factor out of an integer product; quantize with "
    "quantizer.activation_granularity {'4': multiples, '8': per_tensor} (a scale per tensor and step, times a whole "
    "number per channel up to 4 bits)"
)
_MIDDLE = 128
_WHOLE = 12582912.0
"""1.5·2^23: added to a float32 it leaves the nearest whole number, of two the even one, in the lowest bits."""


@dataclass(frozen=True)
class Integers:
    """weight: (O, C, R, S) int8, or (O, C) of a linear layer. rest: (O,) int32, or None where it is zero.
    scale: (O,) float32. bias: (O,) float32 or None. geometry: stride, padding, dilation, each (vertical, horizontal).
    bits: of the weight as it is stored.
    """

    weight: Tensor
    rest: Tensor | None
    scale: Tensor
    bias: Tensor | None
    geometry: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    bits: int

    @property
    def linear(self) -> bool:
        return self.weight.ndim == 2


def why_not(layer: Packed) -> str | None:
    """Why no kernel of integers can compute a layer; None if one can."""
    grid = layer.input
    if isinstance(grid, SplitGrid):
        return "its input is split into two parts of scales of their own"
    if not isinstance(grid, ActivationGrid):
        return "its input is not quantized"
    if len(grid.site.scales) > 1:
        return RECIPE
    if grid.grid.high - grid.grid.low > 255:
        return f"its input has {grid.grid.levels} levels, more than a byte holds"
    low, high = (int(bound) for bound in grid.all_zero_points().aminmax())
    if (products := grid.all_products()) is not None:
        least, most = (each.tolist() for each in products)
        for row in zip(least, most, strict=True):
            if max(row[1], 0) - min(row[0], 0) > 255:
                return f"codes times the multiples of its channels are {row[0]} to {row[1]}: they do not fit a byte"
    elif common_zero_point(grid) is not None:
        if grid.grid.levels + max(high, 0) - min(low, 0) > 256:
            return f"zero points of its channels are {low} to {high}: codes with one for all do not fit a byte"
    elif low < grid.grid.low or high > grid.grid.high:
        return "zero is not on the grid of its input at every timestep, so that a padded border has no code"
    if layer.description.scales > 1:
        return "groups of its inputs have weight scales of their own"
    if isinstance(layer, PackedLinear):
        return None
    if not isinstance(layer, PackedConv2d):
        return "it is no convolution of images and no linear layer"
    if layer.groups != 1 or isinstance(layer.padding, str):
        return f"it has {layer.groups} groups and padding {layer.padding!r}"
    return None


def wholes(grid: ActivationGrid, x: Tensor) -> tuple[Tensor, Tensor]:
    """(q_x - z_x), times its channel's multiple where there are multiples, as float32, and the scale of all of it (1,);
    of a grid with one scale at a timestep.

    In few operations, for they are done for every activation: a whole number within bounds that are whole is the same
    whether it is rounded or bounded first."""
    zero_point = grid.zero_point_now(x.device)
    scale, multiple = grid.scale_and_multiple(x.device)
    step = scale if multiple is None else scale * multiple
    low, high = grid.bounds_now(x.device)
    near = torch.clamp(x.div(step), low - zero_point, high - zero_point)
    whole = (near + _WHOLE) - _WHOLE
    return whole if multiple is None else whole * multiple, scale.view(1)


def lowest_bits(whole: Tensor) -> Tensor:
    """Whole numbers below 2^22 in float32 as integers of which the lowest 22 bits are theirs: a conversion that costs
    one addition."""
    return (whole + _WHOLE).view(torch.int32)


def output_size(codes: Tensor, geometry: Sequence[int], window: Sequence[int]) -> list[int]:
    """Height and width of what a convolution gives. codes: (N, C, H, W). geometry: stride, padding, dilation, each
    (vertical, horizontal)."""
    stride, padding, dilation = geometry[:2], geometry[2:4], geometry[4:6]
    return [
        (codes.shape[2 + i] + 2 * padding[i] - dilation[i] * (window[i] - 1) - 1) // stride[i] + 1 for i in range(2)
    ]


def common_zero_point(grid: ActivationGrid) -> int | None:
    """The zero point that codes are shifted to where each channel has its own: the largest of any timestep, from which
    all others are below. None where there is one anyway, or where there are multiples."""
    if grid.site.multiple_at is not None:
        return None
    return max(int(grid.all_zero_points().max()), 0) if len(grid.site.zero_points) > 1 else None


def middle_zero_points(grid: ActivationGrid) -> Tensor | None:
    """The zero point of (q_x - z_x)·m at each timestep where channels have multiples, (rows,) float32: 128, or the
    nearest to it with which those that do not fit a signed byte fit an unsigned one. None where there are none."""
    products = grid.all_products()
    if products is None:
        return None
    least, most = products
    return torch.full_like(least, _MIDDLE).maximum(-least).minimum(255 - most).float()


def of_layer(layer: Packed) -> Integers:
    """What a kernel multiplies, of a layer that `why_not` has nothing against; on the layer's device."""
    codes = layer.whole_codes()
    zero_point = layer.weight_zero_point.flatten().to(torch.int32)
    shift = zero_point.view(-1, *(1,) * (codes.ndim - 1))
    weight, rest = codes - shift, None
    if int(weight.min()) < -128 or int(weight.max()) > 127:
        weight, rest = codes - 128, zero_point - 128
    bias = None if layer.bias is None else layer.bias.detach().float()
    any_layer: Any = layer
    geometry = ((1, 1), (0, 0), (1, 1))
    if isinstance(layer, PackedConv2d):
        geometry = (any_layer.stride, any_layer.padding, any_layer.dilation)
    return Integers(weight.to(torch.int8), rest, layer.weight_scale.flatten(), bias, geometry, layer.description.bits)
