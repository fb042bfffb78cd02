"""The bit account: what a quantized network really stores and multiplies, counted from its modules.

Sizes count every parameter: b bits for a quantized weight, 32 for each scale, zero point, bias, norm and whatever
else stays full precision. Bit operations (BOPs) of one call are multiply-accumulates × weight bits × input bits
(Uhlich et al. 2020), for layers and attention products alike. A grid of n codes has log2(n) bits, whatever
it is called.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from quest.quantization.grid import Grid
from quest.quantization.layers import QuantizedAttention, QuantizedLayer
from quest.quantization.quantizers import ActivationQuantizer, Split, WeightQuantizer, Widths
from quest.quantization.roles import is_layer

FULL_BITS = 32


def account(network: nn.Module, example: tuple[Any, ...]) -> dict[str, Any]:
    """The account of ``network`` (quantized or not, at its present sampling step), flat and plain, for one call on
    ``example`` (batch of 1).

    weight_mib and full_precision_mib: model size now and at 32 bits; gbops: 10^9 bit operations of one call;
    mean_weight_bits: over weights of layers; mean_activation_bits: over multiply-accumulates;
    layers and full_precision_layers: convolutions and linear layers that are quantized and that are not.
    """
    macs = _multiply_accumulates(network, example)
    weights = quantized = bits_of_weights = 0
    layers = full_precision_layers = 0
    bops = activation_bits = 0.0
    for name, module in network.named_modules():
        if isinstance(module, QuantizedLayer):
            weight_bits, input_bits = _bits(module.weight_quantizer), _bits(module.input_quantizer)
            layers += 1
            quantized += module.weight.numel()
        elif is_layer(module):
            weight_bits = input_bits = float(FULL_BITS)
            full_precision_layers += 1
        elif isinstance(module, Attention):
            for left, right in (("q", "k"), ("probabilities", "v")):  # the two products cost the same
                left_bits, right_bits = _operand_bits(module, left), _operand_bits(module, right)
                bops += macs[name] / 2 * left_bits * right_bits
                activation_bits += macs[name] / 2 * (left_bits + right_bits) / 2
            continue
        else:
            continue
        weights += module.weight.numel()
        bits_of_weights += module.weight.numel() * weight_bits
        bops += macs[name] * weight_bits * input_bits
        activation_bits += macs[name] * input_bits
    parameters = sum(p.numel() for n, p in network.named_parameters() if not _is_quantizer_state(n))
    state = sum(_state_numbers(module) for module in network.modules())
    bits_stored = (parameters - weights) * FULL_BITS + bits_of_weights + state * FULL_BITS
    return {
        "weight_mib": bits_stored / 8 / 2**20,
        "full_precision_mib": parameters * FULL_BITS / 8 / 2**20,
        "gbops": bops / 1e9,
        "mean_weight_bits": bits_of_weights / weights,
        "mean_activation_bits": activation_bits / sum(macs.values()),
        "layers": layers,
        "full_precision_layers": full_precision_layers,
        "weights_quantized": quantized,
        "parameters": parameters,
    }


def assert_levels(rows: Tensor, grid: Grid, what: str) -> None:
    """Raise ValueError when values that share a scale are more distinct ones than ``grid`` has codes.

    rows: (scales, elements), what the network computes with, not its codes.
    """
    ordered = rows.detach().sort(1).values
    found = 1 + int((ordered[:, 1:] != ordered[:, :-1]).sum(1).max())
    if found > grid.levels:
        raise ValueError(
            f"{what}: found {found} distinct values of one scale, expected at most the {grid.levels} of a grid of "
            f"{grid.bits} bits"
        )


def _bits(quantizer: nn.Module) -> float:
    """Bits of a quantizer at the present sampling step; a split one counts the share of each half."""
    if isinstance(quantizer, Split):
        return (_bits(quantizer.first) + _bits(quantizer.second)) / 2
    if isinstance(quantizer, Widths):
        return _bits(quantizer.used)
    if isinstance(quantizer, WeightQuantizer | ActivationQuantizer):
        return math.log2(quantizer.grid.levels)
    return float(FULL_BITS)


def _operand_bits(attention: Attention, operand: str) -> float:
    processor = attention.processor
    if not isinstance(processor, QuantizedAttention) or operand not in processor._modules:
        return float(FULL_BITS)
    return _bits(processor.get_submodule(operand))


def _is_quantizer_state(name: str) -> bool:
    return name.endswith(".scale")


def _state_numbers(module: nn.Module) -> int:
    """Scales and zero points that a quantizer stores."""
    if isinstance(module, WeightQuantizer | ActivationQuantizer):
        return module.scale.numel() + (0 if module.grid.kind != "asymmetric" else module.zero_point.numel())
    return 0


def _multiply_accumulates(network: nn.Module, example: tuple[Any, ...]) -> dict[str, int]:
    """Multiply-accumulates of each layer and of each attention's two products in one call, by module name."""
    macs: dict[str, int] = {}

    def layer(name: str):
        def hook(module: Any, _inputs: tuple[Any, ...], output: Tensor) -> None:
            macs[name] = output.numel() // module.weight.shape[0] * module.weight.numel()

        return hook

    def attention(name: str):
        def hook(module: Attention, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            hidden = inputs[0] if inputs else named["hidden_states"]
            context = inputs[1] if len(inputs) > 1 else named.get("encoder_hidden_states")
            tokens = hidden[0, 0].numel() if hidden.ndim == 4 else hidden.shape[1]
            context_tokens = tokens if context is None else context.shape[1]
            macs[name] = 2 * len(hidden) * tokens * context_tokens * module.to_q.weight.shape[0]

        return hook

    handles = []
    for name, module in network.named_modules():
        if isinstance(module, QuantizedLayer) or is_layer(module):
            handles.append(module.register_forward_hook(layer(name)))
        elif isinstance(module, Attention):
            handles.append(module.register_forward_pre_hook(attention(name), with_kwargs=True))
    try:
        with torch.no_grad():
            network(*example)
    finally:
        for handle in handles:
            handle.remove()
    return macs
