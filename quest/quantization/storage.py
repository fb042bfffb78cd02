"""A quantized network as tensors and back: packed weight codes, scales, zero points, and what stays full precision."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from quest.quantization import packing
from quest.quantization.grid import dequantize
from quest.quantization.layers import QuantizedLayer
from quest.quantization.network import QuantizedNetwork
from quest.quantization.quantizers import ActivationQuantizer, WeightQuantizer
from quest.quantization.rounding import Nearest

_USED = "step_bits"  # tensor of the activation bit-width of each sampling step


def export(network: QuantizedNetwork) -> dict[str, Tensor]:
    """The network as it is stored: packed weight codes, scales and zero points, activation scales, and the parameters
    that stay full precision. Raises ValueError when an activation set was never calibrated."""
    tensors: dict[str, Tensor] = {}
    for name, layer in network.layers().items():
        for part, (quantizer, weight) in enumerate(layer.weight_parts()):
            key = f"{name}.weight.{part}"
            tensors[f"{key}.codes"] = packing.pack(quantizer.codes(weight), quantizer.grid, f"{key}.codes")
            tensors[f"{key}.scale"] = quantizer.scale
            tensors[f"{key}.zero_point"] = quantizer.zero_point.to(torch.int32)
    for name, site in network.sites().items():
        if not bool(site.calibrated.all()):
            missing = (~site.calibrated).nonzero().flatten().tolist()
            raise ValueError(f"{name}: activation scales of sets {missing} were never calibrated")
        tensors[f"{name}.scale"] = site.scale
        tensors[f"{name}.zero_point"] = site.zero_point.round().to(torch.int32)
        if site.multiple is not None:
            tensors[f"{name}.multiple"] = site.multiple
    if network.recipe.lower:
        tensors[_USED] = torch.tensor(network.used(), dtype=torch.uint8)
    return tensors | _full_precision(network)


def restore(network: QuantizedNetwork, tensors: Mapping[str, Tensor]) -> None:
    """Load what `export` gave. Raises ValueError naming the first tensor that is missing, strange or misshapen."""
    expected = set(_full_precision(network))
    for name, layer in network.layers().items():
        expected |= _restore_weight(name, layer, tensors)
    for name, site in network.sites().items():
        expected |= {f"{name}.scale", f"{name}.zero_point"}
        _assign(site.scale, tensors, f"{name}.scale")
        _assign(site.zero_point, tensors, f"{name}.zero_point")
        if site.multiple is not None:
            expected.add(f"{name}.multiple")
            _assign(site.multiple, tensors, f"{name}.multiple")
        site.calibrated.fill_(True)
    if network.recipe.lower:
        expected.add(_USED)
        try:
            network.use(_get(tensors, _USED).flatten().tolist())
        except ValueError as error:
            raise ValueError(f"{_USED}: {error}") from error
    for name, parameter in _full_precision(network).items():
        _assign(parameter, tensors, name)
    if strange := sorted(set(tensors) - expected):
        raise ValueError(f"{strange[0]}: not part of this network under recipe {network.recipe.plain()}")


def _restore_weight(name: str, layer: QuantizedLayer, tensors: Mapping[str, Tensor]) -> set[str]:
    """Load the weight of a layer; returns the names of its tensors."""
    used, parts = set(), []
    for part, (quantizer, weight) in enumerate(layer.weight_parts()):
        key = f"{name}.weight.{part}"
        used |= {f"{key}.codes", f"{key}.scale", f"{key}.zero_point"}
        quantizer.rounding = Nearest()  # codes are whole: rounding them again changes nothing
        _assign(quantizer.scale, tensors, f"{key}.scale")
        _assign(quantizer.zero_point, tensors, f"{key}.zero_point")
        codes = packing.unpack(_get(tensors, f"{key}.codes"), quantizer.grid, weight.shape, f"{key}.codes")
        view = quantizer.granularity.view(codes.to(weight.device))
        parts.append(dequantize(view, quantizer.scale, quantizer.zero_point).view_as(weight))
    layer.weight.data.copy_(torch.cat(parts, 1) if len(parts) > 1 else parts[0])
    return used


def _full_precision(network: QuantizedNetwork) -> dict[str, Tensor]:
    """Parameters and buffers that no quantizer owns: biases, norms, embeddings."""
    weights = {f"{name}.weight" for name in network.layers()}
    quantizers = tuple(
        f"{name}."
        for name, module in network.network.named_modules()
        if isinstance(module, ActivationQuantizer | WeightQuantizer)
    )
    return {
        name: tensor
        for name, tensor in network.network.state_dict(keep_vars=True).items()
        if name not in weights and not name.startswith(quantizers)
    }


def _get(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise ValueError(f"{name}: missing; the checkpoint was quantized with another recipe or from another model")
    return tensors[name]


def _assign(target: Tensor, tensors: Mapping[str, Tensor], name: str) -> None:
    source = _get(tensors, name)
    if source.shape != target.shape:
        raise ValueError(f"{name}: found shape {tuple(source.shape)}, expected {tuple(target.shape)}")
    target.data.copy_(source)
