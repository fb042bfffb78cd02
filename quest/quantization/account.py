"""The bit account: what a quantized network really stores and multiplies, counted from its modules.

Sizes count every parameter: b bits for a quantized weight, 8 for each multiple of a scale, 32 for each scale, zero
point, bias, norm and whatever else stays full precision. Bit operations (BOPs) of one call are multiply-accumulates ×
weight bits × input bits (Uhlich et al. 2020), for layers and attention products alike: whatever a module multiplies
that is no layer counts as the two products of an attention. A grid of n codes has log2(n) bits, whatever it is called.
"""

from __future__ import annotations

import math
from collections.abc import Container
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from quest.quantization.attention import QuantizedAttention
from quest.quantization.grid import Grid
from quest.quantization.layers import QuantizedLayer
from quest.quantization.quantizers import ActivationQuantizer, Split, WeightQuantizer, Widths
from quest.quantization.roles import is_layer

FULL_BITS = 32
MULTIPLE_BITS = 8


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
        else:
            for left, right in (("q", "k"), ("probabilities", "v")):  # the two products cost the same
                left_bits, right_bits = _operand_bits(module, left), _operand_bits(module, right)
                bops += macs.get(name, 0) / 2 * left_bits * right_bits
                activation_bits += macs.get(name, 0) / 2 * (left_bits + right_bits) / 2
            continue
        weights += module.weight.numel()
        bits_of_weights += module.weight.numel() * weight_bits
        bops += macs[name] * weight_bits * input_bits
        activation_bits += macs[name] * input_bits
    parameters = sum(p.numel() for n, p in network.named_parameters() if not _is_quantizer_state(n))
    state = sum(_state_bits(module) for module in network.modules())
    bits_stored = (parameters - weights) * FULL_BITS + bits_of_weights + state
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


def _operand_bits(attention: nn.Module, operand: str) -> float:
    """Of a module that is or holds the products of an attention; in full precision of any other."""
    found = next((part for part in (attention, *attention.children()) if isinstance(part, QuantizedAttention)), None)
    return float(FULL_BITS) if found is None or operand not in found._modules else _bits(found.get_submodule(operand))


def _is_quantizer_state(name: str) -> bool:
    return name.endswith(".scale")


def _state_bits(module: nn.Module) -> int:
    """Of the scales, zero points and multiples that a quantizer stores."""
    if not isinstance(module, WeightQuantizer | ActivationQuantizer):
        return 0
    numbers = module.scale.numel() + (0 if module.grid.kind != "asymmetric" else module.zero_point.numel())
    multiple = getattr(module, "multiple", None)
    return numbers * FULL_BITS + (0 if multiple is None else multiple.numel() * MULTIPLE_BITS)


def _multiply_accumulates(network: nn.Module, example: tuple[Any, ...]) -> dict[str, int]:
    """Multiply-accumulates of one call by module name, each counted where it is computed and not in what is around."""
    # The fused kernels of attention are not all counted; the plain one is two products like any other.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(*example)
    root = type(network).__name__
    counts = {name: sum(counts.values()) // 2 for name, counts in counter.get_flop_counts().items()}
    total = {name.removeprefix(root).removeprefix("."): macs for name, macs in counts.items() if name != "Global"}
    own = dict(total)
    for name in filter(None, total):
        own[_around(name, total)] -= total[name]
    return own


def _around(name: str, called: Container[str]) -> str:
    """The innermost of the modules ``called`` that holds the module ``name``; the network itself is ""."""
    outer = name.rpartition(".")[0]
    return outer if outer in called else _around(outer, called)
