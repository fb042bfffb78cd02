"""A conditional U-Net as a file for ComfyUI: linear layers in its layout ``int8_tensorwise``, the rest in float16.

Of each such layer a file has
    <name>.weight         int8    (out, in)
    <name>.weight_scale   float32 (out, 1), so that the weight is their product
    <name>.comfy_quant    uint8, the JSON {"format": "int8_tensorwise"}
under the names of latent diffusion's released code. The layout has no zero point: a weight q_w - z_w must be a signed
byte, as it is of up to 7 bits. ComfyUI quantizes activations by itself, each row as it comes; ours stay behind.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save
from torch import Tensor

from quest.artifacts import ArtifactError, write_bytes
from quest.deploy.packed.assembly import packed, packed_layers
from quest.deploy.packed.layers import Packed, PackedLinear
from quest.deploy.quantized import QuantizedModel
from quest.sources.compvis.config import Architecture, UNetConfig
from quest.sources.compvis.names import unet_names

FORMAT = "int8_tensorwise"


@torch.no_grad()
def export_comfyui(model: QuantizedModel, output: str | PathLike[str], *, force: bool = False) -> Path:
    """Write the denoiser of ``model`` to the file ``output``.

    Raises ArtifactError when ``output`` is there and not to be replaced, ValueError for a network without such a form:
    another kind, with linear weights that do not fit into signed bytes or that have several scales to a channel.
    """
    output = Path(output)
    if output.exists() and not force:
        raise ArtifactError(f"{output}: is there already; choose another, or --force to replace it")
    name = names_of(model.network.network)
    timesteps = model.around.sampler(model.sampler).timesteps.tolist()
    network, _ = packed(model.network, timesteps)
    layers = packed_layers(network)
    linear = {path: layer for path, layer in layers.items() if isinstance(layer, PackedLinear)}
    tensors: dict[str, Tensor] = {}
    for path, layer in linear.items():
        tensors |= {f"{path}.{key}": tensor for key, tensor in _linear(path, layer).items()}
    for path, layer in layers.items():
        if path not in linear:
            tensors[f"{path}.weight"] = layer.dequantized(torch.float16)
    for key, tensor in network.state_dict().items():
        owner = key.rpartition(".")[0]
        own = owner in layers and not key.endswith(".bias")
        if not own and tensor.is_floating_point() and not key.startswith("quest_"):
            tensors[key] = tensor.to(torch.float16)
    about = {
        "format": "pt",
        "quest": f"{model.method} {model.label}",
        "quest_model": model.checkpoint.inputs.get("model", ""),
    }
    named = {name(key): tensor.cpu().contiguous() for key, tensor in tensors.items()}
    write_bytes(output, save(named, metadata=about))
    return output


def _linear(path: str, layer: Packed) -> dict[str, Tensor]:
    if layer.description.scales > 1:
        raise ValueError(
            f"{path}: found {layer.description.scales} weight scales to a channel, expected one "
            "(quantizer.weight_group and quantizer.split_shortcuts at their defaults)"
        )
    weight = layer.whole_codes() - layer.weight_zero_point.to(torch.int32)
    low, high = (int(bound) for bound in weight.aminmax())
    if low < -128 or high > 127:
        raise ValueError(
            f"{path}: its {layer.description.bits}-bit weights are {low} to {high} scales from zero, and {FORMAT} "
            "holds -128 to 127 with no zero point; expected weights of up to 7 bits, like w7a8 or w4a8"
        )
    about = torch.tensor(list(json.dumps({"format": FORMAT}).encode()), dtype=torch.uint8)
    return {"weight": weight.to(torch.int8), "weight_scale": layer.weight_scale.float(), "comfy_quant": about}


def names_of(network: Any) -> Callable[[str], str]:
    """From the name of a weight to that in latent diffusion's released code, which ComfyUI goes by."""
    if not isinstance(network, UNet2DConditionModel):
        raise ValueError(
            f"found a {type(network).__name__}, expected a UNet2DConditionModel: ComfyUI names the weights of other "
            "networks otherwise than diffusers, and how is not known here"
        )
    config: Any = network.config
    first = config.block_out_channels[0]
    attending = tuple(2**level for level, kind in enumerate(config.down_block_types) if kind.startswith("CrossAttn"))
    try:
        unet = UNetConfig(
            image_size=config.sample_size,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            model_channels=first,
            attention_resolutions=attending,
            num_res_blocks=config.layers_per_block,
            channel_mult=tuple(channels // first for channels in config.block_out_channels),
            num_heads=1,  # which no name depends on
            use_spatial_transformer=True,
            context_dim=config.cross_attention_dim,
        )
    except ValueError as error:
        raise ValueError(f"a network that latent diffusion's released code has no names for: {error}") from error
    known = unet_names(Architecture.model_construct(unet_config=unet))

    def name(key: str) -> str:
        try:
            return known(key)
        except StopIteration:
            raise ValueError(f"{key}: latent diffusion's released code has no such weight, nor a name for it") from None

    return name
