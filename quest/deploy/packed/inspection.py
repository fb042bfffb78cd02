"""What a packed folder is, layer by layer, from its configuration: the same account as before it was quantized."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from quest import architectures
from quest.artifacts import ArtifactError
from quest.config.quantizer import QuantizerSettings
from quest.config.values import UNQUANTIZED, Bits
from quest.deploy import inspection
from quest.deploy.inspection import Inspection
from quest.deploy.packed import description
from quest.deploy.packed.description import METHOD, PARTS, Description, LayerDescription
from quest.quantization.account import account
from quest.quantization.network import QuantizedNetwork
from quest.quantization.policy import Policy
from quest.quantization.recipe import Recipe
from quest.sources.weights import read_json

_WEIGHTS = "*.safetensors"


def folder_of(model: Path) -> Path | None:
    """The folder of the packed network in ``model``, a pipeline's folder or its own; None where there is none."""
    for folder in (*(model / part for part in PARTS), model):
        if (folder / "config.json").is_file():
            packed = read_json(folder / "config.json").get("quantization_config")
            return folder if isinstance(packed, Mapping) and packed.get("quant_method") == METHOD else None
    return None


def inspect(folder: Path) -> Inspection:
    """What the packed network in ``folder`` is. Its size is that of its file, where that is there.

    Raises ArtifactError for a description that cannot be read, or is not of its own network.
    """
    config = dict(read_json(folder / "config.json"))
    described = description.read(dict(config.pop("quantization_config")))
    name = config.get("_class_name", "")
    if name not in architectures.networks():
        raise ArtifactError(f"{folder}: {architectures.unexplained(name)}")
    with torch.device("meta"):
        network = architectures.build(name, config, described.heads).eval()
    if missing := set(described.layers) - {layer for layer, _ in network.named_modules()}:
        raise ArtifactError(f"{folder}: quantization_config.layers: no {min(missing)} in a {name}; fetch it again")
    example = architectures.of(network).example()
    quantized = QuantizedNetwork(network, _recipe(described), example, search=False)
    with quantized.quantizing(weights=False, activations=False):
        counted = account(quantized.network, quantized.example)
    bytes_of_files = sum(file.stat().st_size for file in folder.glob(_WEIGHTS))
    return Inspection(
        network=name,
        bits=described.bits,
        method=described.method,
        parameters=counted["parameters"],
        mib=bytes_of_files / 2**20 if bytes_of_files else counted["weight_mib"],
        full_precision_mib=counted["full_precision_mib"],
        gbops=counted["gbops"],
        asked=described.made.get("asked"),
        **inspection.parts(quantized, inspection.Description(name, config, described.heads)),
    )


def _recipe(described: Description) -> Recipe:
    """A recipe that gives every layer and operand the bits that it has."""
    layers = tuple((name, Bits(layer.bits, _input_bits(layer))) for name, layer in described.layers.items())
    operands: dict[str, Any] = next(iter(described.attention.values()), {})
    given: dict[str, Any] = {"split_shortcuts": any(layer.split_at for layer in described.layers.values())}
    if "probabilities" in operands:
        given["softmax_bits"] = operands["probabilities"].bits[0]
    activation = operands["q"].bits[0] if "q" in operands else max(bits.activation for _, bits in layers)
    policy = Policy("packed", (*layers, ("*", UNQUANTIZED)), attention=bool(operands))
    return Recipe(Bits(8, activation), QuantizerSettings(**given), 1, 1, policy)


def _input_bits(layer: LayerDescription) -> int:
    return layer.input[0].bits[0] if layer.input else UNQUANTIZED.activation
