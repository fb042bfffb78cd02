"""Kernels that multiply the integer codes of packed layers, chosen by what a machine and a layer allow.

A kernel is a module here with three functions:
    lacking(device)      why it cannot run on a device, or None
    refuses(integers)    why it cannot compute a layer, or None
    make(integers)       a module: codes less their zero point, their scale and zero point and the dtype of the output,
                         to the output
`reference` computes in exact arithmetic everywhere and is what the others are tested against; it is not fast.

A layer that has a kernel is `fed` its codes. On a GPU the parts of a U-Net between its products have kernels too:
`attention`, and `images`, which are norms, growing and residuals.
"""

from __future__ import annotations

import importlib
from collections import Counter
from typing import Any

import torch
from torch import nn

from quest.config.reading import unknown
from quest.deploy.kernels import attention, images, instead
from quest.deploy.kernels.fed import Fed
from quest.deploy.kernels.integers import of_layer, why_not
from quest.deploy.packed.assembly import packed_layers
from quest.deploy.packed.description import PARTS
from quest.deploy.packed.layers import ActivationGrid, Packed, SplitGrid
from quest.quantization.attention import QuantizedAttention

EXACT = "reference"
KERNELS = ("triton", "cpu", EXACT)
"""Fastest first. "auto" takes the first of them but `EXACT` that can be used."""
FLOATS = "floats"
"""What a layer without a kernel computes in: its integers as floating-point numbers, as in training."""


def use_kernels(model: Any, kernel: str = "auto") -> dict[str, str]:
    """Have a packed model, or a pipeline with one, multiply integers, on the device that it is on.

    kernel: "auto", one of `KERNELS`, or "floats" to go back. Returns, for each packed layer, the kernel it has or why
    it has none and computes in floats, which is as right but no faster; the same for each attention, where "triton" has
    a kernel for its products. They keep their kernels until they move to another device. Raises ValueError for a model
    that is not packed, or a kernel that this machine lacks.
    """
    network = next((getattr(model, part) for part in PARTS if hasattr(model, part)), model)
    layers = packed_layers(network) if isinstance(network, nn.Module) else {}
    if not layers:
        raise ValueError(f"{type(model).__name__}: holds no packed layer; load a folder that quest.export wrote")
    if kernel not in ("auto", FLOATS, *KERNELS):
        raise ValueError(f"kernel: {unknown(kernel, ('auto', FLOATS, *KERNELS))}")
    attentions = {name: part for name, part in network.named_modules() if isinstance(part, QuantizedAttention)}
    for layer in layers.values():
        layer.kernel = None
    for products in attentions.values():
        instead.take(products)
    images.take(network)
    if kernel == FLOATS:
        return dict.fromkeys(layers, FLOATS)
    device = next(iter(layers.values())).codes.device
    found, lacking = _usable(kernel, device)
    if found is None:
        if kernel != "auto":
            raise ValueError(f"kernel {kernel!r} on {device}: {lacking[kernel]}; choose another, or auto")
        reason = "; ".join(f"{name}: {why}" for name, why in lacking.items())
        return dict.fromkeys(layers, reason)
    given = {name: _give(found, layer) for name, layer in layers.items()}
    if found == attention.KERNEL:
        given |= {name: _give_attention(products, device) for name, products in attentions.items()}
        images.give(network, device)
    return given


def multiply(network: nn.Module) -> tuple[dict[str, str], str]:
    """Have every layer of a packed network multiply integers: by the fastest kernel that can be used here, and by
    `EXACT` what that cannot compute. Layers whose input is not quantized have none.

    Returns, for each layer, its kernel, and why some have `EXACT`. Raises ValueError naming a layer whose integers no
    kernel can multiply, with the reason.
    """
    fast = use_kernels(network)
    layers = {
        name: layer
        for name, layer in packed_layers(network).items()
        if isinstance(layer.input, ActivationGrid | SplitGrid)
    }
    refused = {name: reason for name, layer in layers.items() if (reason := why_not(layer)) is not None}
    if refused:
        first, reason = next(iter(refused.items()))
        raise ValueError(
            f"{first}: no integer kernel computes it, nor {len(refused) - 1} of the other {len(layers) - 1} layers: "
            f"{reason}"
        )
    slow = {name: fast[name] for name, layer in layers.items() if layer.kernel is None}
    found = {name: fast[name] if name not in slow else _give(EXACT, layer) for name, layer in layers.items()}
    return found, "; ".join(dict.fromkeys(slow.values()))


def summary(report: dict[str, str]) -> str:
    """How many modules, layers and attentions, have which kernel, or lack one for which reason; a line each."""
    return "\n".join(f"{count} modules: {what}" for what, count in Counter(report.values()).most_common())


def lacking(name: str, device: torch.device) -> str | None:
    """Why a kernel cannot run on a device; None if it can."""
    return _module(name).lacking(device)


def _usable(kernel: str, device: torch.device) -> tuple[str | None, dict[str, str]]:
    reasons: dict[str, str] = {}
    for name in KERNELS[:-1] if kernel == "auto" else (kernel,):
        why = lacking(name, device)
        if why is None:
            return name, reasons
        reasons[name] = why
    return None, reasons


def _give(name: str, layer: Packed) -> str:
    """Give a layer a kernel; returns its name, or why the layer has none."""
    module, reason = _module(name), why_not(layer)
    if reason is not None:
        return reason
    integers = of_layer(layer)
    reason = module.refuses(integers)
    if reason is not None:
        return f"{name}: {reason}"
    assert isinstance(layer.input, ActivationGrid)
    layer.kernel = Fed(layer.input, module.make(integers))
    return name


def _give_attention(products: QuantizedAttention, device: torch.device) -> str:
    """Give an attention the kernel of its products; returns the kernel's name, or why it has none."""
    reason = attention.why_not(products)
    if reason is None:
        attention.give(products, device)
    return reason or attention.KERNEL


def _module(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name}")
