"""Quantized layers: a convolution or linear layer that computes with its quantizers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from quest.quantization.quantizers import Split, WeightQuantizer
from quest.quantization.roles import Role
from quest.quantization.rounding import Nearest


class Switches:
    """Whether weights and activations are quantized at present; one object shared by a whole network."""

    weights = True
    activations = True


class QuantizedLayer(nn.Module):
    """A convolution or linear layer with its weight and its input on a grid; the bias stays full precision.

    Takes over the parameters of ``layer``. weight_quantizer and input_quantizer map a tensor to one of its shape.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        layer: nn.Conv1d | nn.Conv2d | nn.Linear,
        role: Role,
        weight_quantizer: nn.Module,
        input_quantizer: nn.Module,
        switches: Switches,
    ):
        super().__init__()
        parameters = dict(layer.named_parameters())
        self.weight = parameters["weight"]
        self.register_parameter("bias", parameters.get("bias"))
        self.role = role
        self.weight_quantizer, self.input_quantizer = weight_quantizer, input_quantizer
        self._switches = switches
        self._operation = operation(layer)
        self._frozen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self._switches.activations:
            x = self.input_quantizer(x)
        return self._operation(x, self.quantized_weight() if self._switches.weights else self.weight, self.bias)

    def quantized_weight(self) -> Tensor:
        """The weight on its grid."""
        return self.weight_quantizer(self.weight) if self._frozen is None else self._frozen

    def weight_parts(self) -> list[tuple[WeightQuantizer, Tensor]]:
        """The weight quantizers of this layer, each with the part of the weight that it holds."""
        return _parts(self.weight_quantizer, self.weight)

    def fold(self) -> None:
        """Take what the weight is on its grid for the weight itself. Only training moves its codes from here on: half
        a scale to the next, where a learned rounding keeps weights beside an integer a hair from a whole one."""
        self.weight.data.copy_(self.weight_quantizer(self.weight).detach())
        self.round_to_nearest()

    def round_to_nearest(self) -> None:
        """Forget a learned rounding: that of a weight which is on its grid already must not be applied again."""
        for quantizer, _ in self.weight_parts():
            quantizer.rounding = Nearest()

    def freeze(self) -> None:
        """Quantize the weight once for all coming calls, until `unfreeze`."""
        self.use(self.weight_quantizer(self.weight).detach())

    def use(self, quantized: Tensor) -> None:
        """Take ``quantized`` for the weight on its grid in all coming calls, until `unfreeze`."""
        self._frozen = quantized

    def unfreeze(self) -> None:
        """Quantize the weight anew at each call."""
        self._frozen = None


def _parts(quantizer: nn.Module, weight: Tensor) -> list[tuple[WeightQuantizer, Tensor]]:
    if isinstance(quantizer, Split):
        return _parts(quantizer.first, weight[:, : quantizer.at]) + _parts(quantizer.second, weight[:, quantizer.at :])
    assert isinstance(quantizer, WeightQuantizer)
    return [(quantizer, weight)]


def operation(layer: nn.Module) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """What a layer computes, as a function of (input, weight, bias)."""
    if isinstance(layer, nn.Linear):
        return functional.linear
    if isinstance(layer, nn.Conv1d | nn.Conv2d) and layer.padding_mode == "zeros":
        return partial(_convolve, geometry=(layer.stride, layer.padding, layer.dilation, layer.groups))
    raise ValueError(f"cannot quantize {layer}; expected a linear layer or a convolution with zero padding")


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Any, ...]) -> Tensor:
    """geometry: stride, padding, dilation and groups, as the layer has them."""
    trained = weight.requires_grad or (bias is not None and bias.requires_grad)
    if x.requires_grad and not trained and not isinstance(geometry[1], str):
        return _FixedConvolution.apply(x, weight, bias, geometry)  # type: ignore[return-value]
    return _convolution(x, weight, bias, geometry)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Any, ...]) -> Tensor:
    return (functional.conv2d if weight.ndim == 4 else functional.conv1d)(x, weight, bias, *geometry)


class _FixedConvolution(torch.autograd.Function):
    """A convolution of which only the input is differentiated. Autograd would keep the input for the gradient of the
    weight, asked for or not: of a network that is trained in part, most of what its convolutions keep."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.layout, ctx.geometry = (x.shape, x.stride()), geometry
        return _convolution(x, weight, bias, geometry)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override]
        (weight,) = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        x = gradient.new_empty_strided(*ctx.layout)  # its values are not read; its layout chooses the algorithm
        place = (stride, padding, dilation, False, [0] * len(stride), groups)
        to_x, _, _ = torch.ops.aten.convolution_backward(gradient, x, weight, None, *place, (True, False, False))
        return to_x, None, None, None
