"""What quantizing a model would make of it, from its configuration alone: no weight is read, no number computed.

The network is built on torch's meta device, where tensors have shapes and no content, and put on its grids there, by
the code that does it for real; what that would store and multiply is counted by the bit account of every table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quest import architectures, artifacts
from quest.artifacts import ArtifactError
from quest.deploy import start
from quest.deploy.packed.description import PARTS
from quest.deploy.quantize import settings_of, width_of
from quest.diffusion.denoiser import Denoiser
from quest.quantization.account import account
from quest.quantization.attention import QuantizedAttention
from quest.quantization.layers import QuantizedLayer
from quest.quantization.network import QuantizedNetwork
from quest.quantization.quantizers import ActivationQuantizer, Split, Widths
from quest.quantization.roles import is_layer
from quest.sources.weights import in_one_line, read_json


@dataclass(frozen=True)
class Description:
    """A network as its files describe it: the name of its class, and its diffusers config. heads: of its attentions,
    where they are told apart. others: the other parts of its pipeline, with their classes."""

    network: str
    config: Mapping[str, Any]
    heads: Mapping[str, int] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Layers, or attention products, of one role that have the same bits. parameters: weights, without biases."""

    role: str
    count: int
    parameters: int
    weight_bits: int | None
    activation_bits: int


@dataclass(frozen=True)
class Rest:
    """What stays as it is. what: a kind of parameter or a part of the pipeline; parameters: None where not counted."""

    what: str
    count: int
    parameters: int | None
    why: str


@dataclass(frozen=True)
class Inspection:
    """What becomes of a model.

    parameters: of its network. mib and full_precision_mib: its size, scales included, and at 32 bits; gbops: 10^9 bit
    operations of one call for one sample. asked: of a packed network whose layers were given bits of their own, the
    wish that these follow from.
    """

    network: str
    bits: str
    method: str
    parameters: int
    mib: float
    full_precision_mib: float
    gbops: float
    layers: list[Group]
    not_quantized: list[Rest]
    asked: dict[str, Any] | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def inspect(model: Path, bits: str, method: str, roles: Mapping[str, str] | None = None) -> Inspection:
    """What ``method`` would make of ``model`` at ``bits``, with the settings that `quest.quantize` has unless told.

    model: a diffusers pipeline's folder, that of one of its networks, or a model artifact. roles: of layers that the
    architecture does not explain, as `quantizer.roles`. Raises ArtifactError for a path that is none of these, and
    ValueError for a network that no architecture explains, or of which a layer has no role.
    """
    width, described = width_of(bits), describe(model)
    network = _built(model, described)
    settings = settings_of(method, calibration={}, own={}, quantizer={"roles": dict(roles or {})})
    recipe = start.recipe_of(settings, Denoiser(network, None), method, width)  # type: ignore[arg-type]
    quantized = QuantizedNetwork(network, recipe, architectures.of(network).example(), search=False)
    with quantized.quantizing(weights=False, activations=False):  # grids need numbers; their sizes are known
        counted = account(quantized.network, quantized.example)
    return Inspection(
        network=described.network,
        bits=bits,
        method=method,
        parameters=counted["parameters"],
        mib=counted["weight_mib"],
        full_precision_mib=counted["full_precision_mib"],
        gbops=counted["gbops"],
        **parts(quantized, described),
    )


def parts(network: QuantizedNetwork, described: Description) -> dict[str, Any]:
    """What of a network is on which grids, ``layers``, and what of it and its pipeline stays, ``not_quantized``."""
    return {
        "layers": [*_layers(network), *_products(network)],
        "not_quantized": [*_rest(network), *_others(described)],
    }


def describe(model: Path) -> Description:
    """What the files say of the network in ``model``. Raises ArtifactError where they say nothing."""
    if model.is_dir():
        return _of_folder(model)
    if not model.exists() or model.suffix != ".safetensors":
        found = "no such file or folder" if not model.exists() else "a file, but no .safetensors"
        raise ArtifactError(
            f"{model}: {found}; expected a diffusers pipeline's folder, the folder of a network, or a model artifact"
        )
    notes = artifacts.read_manifest(model, "model").notes
    others = {part: "" for part in ("first_stage", "conditioner") if part in notes}
    others = {part: notes[part].get("architecture", notes[part].get("kind", "")) for part in others}
    return Description(notes["architecture"], notes["config"], notes["heads"], others)


def _of_folder(folder: Path) -> Description:
    if not (folder / "model_index.json").is_file():
        return _of_network(folder)
    index = {
        part: of[1]
        for part, of in read_json(folder / "model_index.json").items()
        if isinstance(of, list) and len(of) == 2 and of[1] is not None
    }
    part = next((part for part in PARTS if part in index), None)
    if part is None:
        raise ArtifactError(
            f"{folder}: a pipeline without a part called {' or '.join(PARTS)}; found {', '.join(index) or 'no part'}. "
            "Give the folder of the network that denoises"
        )
    found = _of_network(folder / part if (folder / part).is_dir() else folder)
    return Description(
        found.network, found.config, found.heads, {name: of for name, of in index.items() if name != part}
    )


def _of_network(folder: Path) -> Description:
    file = folder / "config.json"
    if not file.is_file():
        raise ArtifactError(
            f"{folder}: neither model_index.json nor config.json in it; expected the folder of a diffusers pipeline, "
            "or of one of its networks"
        )
    config = read_json(file)
    if "_class_name" not in config:
        raise ArtifactError(f"{file}: no _class_name; expected the config of a diffusers network")
    if (already := config.get("quantization_config")) is not None:
        how = " ".join(str(already[key]) for key in ("quant_method", "bits") if key in already)
        raise ArtifactError(f"{file}: quantized already ({how}); expected a model in full precision")
    return Description(config["_class_name"], config)


def _built(model: Path, described: Description) -> nn.Module:
    """The network, on the meta device. Raises ArtifactError where its class does not take its config."""
    if described.network not in architectures.networks():
        raise ValueError(f"{model}: {architectures.unexplained(described.network)}")
    try:
        with torch.device("meta"):
            return architectures.build(described.network, described.config, described.heads).eval()
    except (TypeError, ValueError, KeyError, AttributeError, NotImplementedError) as error:
        raise ArtifactError(
            f"{model}: a {described.network} cannot be built from its config: {in_one_line(error)}"
        ) from error


def _layers(network: QuantizedNetwork) -> Iterator[Group]:
    """Quantized layers, grouped in the order of the network."""
    count: Counter[tuple[str, int, int]] = Counter()
    parameters: Counter[tuple[str, int, int]] = Counter()
    for layer in network.layers().values():
        (quantizer, _weight), *_ = layer.weight_parts()
        key = str(layer.role), quantizer.grid.bits, _bits(layer.input_quantizer)
        count[key] += 1
        parameters[key] += layer.weight.numel()
    for (role, weight, activation), number in count.items():
        yield Group(role, number, parameters[role, weight, activation], weight, activation)


def _products(network: QuantizedNetwork) -> Iterator[Group]:
    """Operands of the attention products, by name."""
    count: Counter[tuple[str, int]] = Counter()
    for module in network.network.modules():
        if isinstance(module, QuantizedAttention):
            count.update((f"attention's {name}", _bits(site)) for name, site in module.named_children())
    for (operand, bits), number in count.items():
        yield Group(operand, number, 0, None, bits)


def _bits(site: nn.Module) -> int:
    if isinstance(site, Split):
        return _bits(site.first)
    if isinstance(site, Widths):
        return _bits(site[0])
    return site.grid.bits if isinstance(site, ActivationQuantizer) else 32


def _rest(network: QuantizedNetwork) -> Iterator[Rest]:
    """Parameters that stay in full precision, by what they are."""
    count: Counter[tuple[str, str]] = Counter()
    parameters: Counter[tuple[str, str]] = Counter()
    for module in network.network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if (key := _reason(module, name, network.recipe.policy.name)) is not None:
                count[key] += 1
                parameters[key] += parameter.numel()
    for (what, why), number in count.items():
        yield Rest(what, number, parameters[what, why], why)
    if not network.recipe.policy.attention:
        yield Rest("attention products", len(network.architecture.attentions()), 0, "the method's paper leaves them")


def _reason(module: nn.Module, name: str, policy: str) -> tuple[str, str] | None:
    """What a parameter is and why it stays; None where it does not, or is part of a grid."""
    if isinstance(module, ActivationQuantizer) or (isinstance(module, QuantizedLayer) and name == "weight"):
        return None
    if name == "bias" and (isinstance(module, QuantizedLayer) or is_layer(module)):
        return "biases of layers", "added to what a layer multiplied; few"
    if is_layer(module):
        return "layers", f"the policy {policy!r} leaves them"
    if isinstance(module, nn.Embedding):
        return "embeddings", "looked up, not multiplied"
    if "norm" in type(module).__name__.lower():
        return "norms", "they scale and shift each element; few"
    return "single parameters", "added to activations, not multiplied with them"


def _others(described: Description) -> Iterator[Rest]:
    for part, kind in described.others.items():
        yield Rest(f"{part} ({kind})" if kind else part, 1, None, "no part of what denoises")
