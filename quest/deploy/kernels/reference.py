"""Integer products in float64, whose sums are exact below 2^53: always right, on every device, and slow."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from quest.deploy.kernels.integers import Integers


def lacking(device: torch.device) -> str | None:
    """It runs wherever there is float64."""
    return "no float64" if device.type == "mps" else None


def refuses(integers: Integers) -> str | None:
    """It computes every layer."""
    return None


def sums(whole: Tensor, integers: Integers) -> Tensor:
    """Σ (q_x - z_x)·(w - r), whole numbers as float64. whole: q_x - z_x, (N, C, H, W) or (…, C)."""
    weight = integers.weight.double()
    if integers.rest is not None:
        weight = weight - integers.rest.double().view(-1, *(1,) * (weight.ndim - 1))
    x = whole.double()
    if integers.linear:
        return functional.linear(x, weight)
    stride, padding, dilation = integers.geometry
    return functional.conv2d(x, weight, None, stride, padding, dilation)


class Product(nn.Module):
    """A layer as a function of codes less their zero point, their scale (1,), zero point (1,) and the dtype of the
    output."""

    def __init__(self, integers: Integers):
        super().__init__()
        self._integers = integers

    def forward(self, whole: Tensor, scale: Tensor, zero_point: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        integers, shape = self._integers, (-1,) if self._integers.linear else (-1, 1, 1)
        y = sums(whole, integers) * (scale.double() * integers.scale.double()).view(shape)
        return (y if integers.bias is None else y + integers.bias.double().view(shape)).to(dtype)


make = Product
