"""Whether a published model is one that can be sampled and quantized here, and fits its protocol: checked at import.

Each check looks at one thing and says, in one sentence that names both sides, what does not fit; or nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from quest.artifacts import ArtifactError
from quest.config.dataset import DatasetSettings
from quest.diffusion.conditioners import ClassEmbedder, ClassLabels
from quest.diffusion.denoiser import Denoiser

Config = Mapping[str, Any]

_CONDITIONING = {
    "addition_embed_type": "a condition added to the time embedding, as SDXL's text_time",
    "class_embed_type": "a class embedding in the time embedding",
    "num_class_embeds": "a class embedding in the time embedding",
    "encoder_hid_dim_type": "a projection of another encoder's states, as of image prompts",
    "time_cond_proj_dim": "the guidance scale as an input, as LCM has it",
    "cross_attention_norm": "a normalized context",
    "dual_cross_attention": "two contexts",
}
_BLOCKS = {
    UNet2DModel: {
        *("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
        *("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    },
    UNet2DConditionModel: {
        *("DownBlock2D", "CrossAttnDownBlock2D", "ResnetDownsampleBlock2D"),
        *("UpBlock2D", "CrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    },
}
_MIDDLE = {UNet2DModel: "UNetMidBlock2D", UNet2DConditionModel: "UNetMidBlock2DCrossAttn"}


def check_unet(architecture: type, config: Config, where: str) -> None:
    """Raises ArtifactError for the config.json of a U-Net that is none of those known here, before it is built.

    architecture: UNet2DModel or UNet2DConditionModel. config: with its defaults filled in.
    """
    for check in (_conditioning, _attention_type, _time_embedding, _blocks, _heads, _side):
        if problem := check(architecture, config):
            raise ArtifactError(f"{where}: {problem}")


def check_parts(model: Denoiser, where: str) -> None:
    """Raises ArtifactError where U-Net, first stage, encoder and scheduler do not fit together."""
    for check in (_channels, _latents, _normalization, _context, _weights):
        if problem := check(model):
            raise ArtifactError(f"{where}: {problem}")


def check_protocol(model: Denoiser, settings: DatasetSettings, where: str) -> None:
    """Raises ArtifactError where the model does not fit the dataset's protocol.

    A rule gives a stage the sections that it depends on; what is not there cannot disagree.
    """
    checks: list[Callable[[Denoiser, DatasetSettings], str | None]] = [_image_channels, _image_size]
    checks += [_condition] if settings.condition is not None else []
    checks += [_guidance, _sampler] if "sampler" in settings.model_fields_set else []
    for check in checks:
        if problem := check(model, settings):
            raise ArtifactError(f"{where}: {problem}")


def _conditioning(architecture: type, config: Config) -> str | None:
    for key, what in _CONDITIONING.items():
        if config.get(key):
            return f"{key} is {config[key]!r}, {what}; expected a U-Net of a timestep and at most one context"
    return None


def _attention_type(architecture: type, config: Config) -> str | None:
    if (found := config.get("attention_type", "default")) != "default":
        return f"attention_type is {found!r}, of GLIGEN's boxes; expected 'default'"
    return None


def _time_embedding(architecture: type, config: Config) -> str | None:
    if (found := config["time_embedding_type"]) != "positional":
        return f"time_embedding_type is {found!r}, of networks that are told something else; expected 'positional'"
    return None


def _blocks(architecture: type, config: Config) -> str | None:
    known = _BLOCKS[architecture]
    for key in ("down_block_types", "up_block_types"):
        if strange := [name for name in config[key] if name not in known]:
            return f"{key} has {strange[0]!r}; known are {', '.join(sorted(known))}"
    if (found := config["mid_block_type"]) not in (_MIDDLE[architecture], None):
        return f"mid_block_type is {found!r}; expected {_MIDDLE[architecture]!r}, or none as in pruned networks"
    levels = [len(config[key]) for key in ("block_out_channels", "down_block_types", "up_block_types")]
    if len(set(levels)) > 1:
        return f"block_out_channels, down_block_types and up_block_types are of {levels} levels; expected as many each"
    return None


def _heads(architecture: type, config: Config) -> str | None:
    """attention_head_dim: channels of a head in a UNet2DModel, and a number of heads in the other, despite its name."""
    if config.get("num_attention_heads") is not None:
        return f"num_attention_heads is {config['num_attention_heads']}; expected none, but attention_head_dim"
    channels, given = config["block_out_channels"], config["attention_head_dim"]
    heads = given if isinstance(given, list | tuple) else [given] * len(channels)
    if len(heads) != len(channels):
        return f"attention_head_dim has {len(heads)} numbers for {len(channels)} levels of block_out_channels"
    last = len(channels) - 1
    for level, (width, divisor) in enumerate(zip(channels, heads, strict=True)):
        attends = level == last or "Attn" in config["down_block_types"][level] + config["up_block_types"][last - level]
        if attends and divisor is not None and (divisor < 1 or width % divisor):
            return f"attention_head_dim is {divisor}, which does not divide the {width} channels of level {level}"
    return None


def _side(architecture: type, config: Config) -> str | None:
    side = square(config["sample_size"])
    if side is None:
        return f"sample_size is {config['sample_size']}; expected the one side of a square"
    halvings = len(config["block_out_channels"]) - 1
    if architecture is UNet2DModel and side % 2**halvings:
        return f"sample_size is {side}, which {halvings + 1} levels of block_out_channels cannot halve {halvings} times"
    return None


def square(size: Any) -> int | None:
    """The side of a square that a configuration gives as one number or as two; None for anything else."""
    sides = set(size) if isinstance(size, list | tuple) else {size}
    side = sides.pop() if len(sides) == 1 else None
    return side if isinstance(side, int) and side > 0 else None


def _channels(model: Denoiser) -> str | None:
    config: Any = model.network.config
    taken, given = config.in_channels, config.out_channels
    if taken == given:
        return None
    what = ", a variance as well as the noise" if given == 2 * taken else ""
    what = ", more than is denoised, as for inpainting" if taken > given else what
    return f"the U-Net takes in_channels {taken} and gives out_channels {given}{what}; expected as many as it takes"


def _latents(model: Denoiser) -> str | None:
    if model.first_stage is None:
        return None
    channels = _latent_channels(model.first_stage.network)
    if model.shape[0] != channels:
        return f"the U-Net has {model.shape[0]} channels, but the latents of the first stage have {channels}"
    return None


def _latent_channels(network: Any) -> int:
    if isinstance(network, VQModel):
        return network.config["vq_embed_dim"] or network.config["latent_channels"]
    return network.config["latent_channels"]


def _normalization(model: Denoiser) -> str | None:
    if model.first_stage is None:
        return None
    scale, network = model.first_stage.scale_factor, model.first_stage.network
    if not _usable(scale) or scale == 0:
        return f"the first stage has the scale factor {scale}; expected a finite number other than 0"
    config: Any = network.config
    shift, mean, deviation = (config.get(key) for key in ("shift_factor", "latents_mean", "latents_std"))
    if (mean is None) != (deviation is None):
        return "the first stage has one of latents_mean and latents_std; expected both or none"
    if mean is not None and shift:
        return "the first stage has latents_mean and shift_factor; expected one of them"
    if shift is not None and not _usable(shift):
        return f"the first stage has the shift_factor {shift}; expected a finite number"
    if mean is not None and deviation is not None:
        channels = _latent_channels(network)
        if not len(mean) == len(deviation) == channels:
            return f"the first stage has latents_mean {mean} and latents_std {deviation} for {channels} channels"
        if not all(map(_usable, [*mean, *deviation])) or 0 in deviation:
            return (
                f"the first stage has latents_mean {mean}, latents_std {deviation}; expected finite numbers, no std 0"
            )
    return None


def _usable(number: Any) -> bool:
    return isinstance(number, int | float) and math.isfinite(number)


def _context(model: Denoiser) -> str | None:
    takes = isinstance(model.network, UNet2DConditionModel)
    if takes and model.conditioner is None:
        return "the U-Net takes a context, but there is no encoder that gives one"
    if model.conditioner is None:
        return None
    if not takes:
        return "there is an encoder, but the U-Net takes no context"
    config: Any = model.network.config
    taken = config.cross_attention_dim
    if isinstance(model.conditioner, ClassEmbedder):
        given = model.conditioner.embedding.embedding_dim
    elif isinstance(model.conditioner, ClassLabels):
        return "the U-Net takes a context, but its classes are given by their numbers"
    else:
        given = model.conditioner.model.config.hidden_size
    if any(width != given for width in (taken if isinstance(taken, list | tuple) else [taken])):
        return f"the U-Net takes a context of cross_attention_dim {taken}, but the encoder gives {given} channels"
    return None


def _weights(model: Denoiser) -> str | None:
    for part, network in _networks(model):
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                return f"{part}: {name} holds numbers that are not finite; fetch the published weights again"
    return None


def _networks(model: Denoiser) -> Iterator[tuple[str, nn.Module]]:
    yield "U-Net", model.network
    if model.first_stage is not None:
        yield "first stage", model.first_stage.network
    if model.conditioner is not None:
        yield "encoder", model.conditioner


def _image_channels(model: Denoiser, settings: DatasetSettings) -> str | None:
    if model.first_stage is None:
        part, found = "the U-Net", {model.shape[0]}
    else:
        config: Any = model.first_stage.network.config
        part, found = "the first stage", {config.in_channels, config.out_channels}
    if found != {settings.image_channels}:
        channels = " and ".join(map(str, sorted(found)))
        return f"{part} has images of {channels} channels, but image_channels is {settings.image_channels}"
    return None


def _image_size(model: Denoiser, settings: DatasetSettings) -> str | None:
    side = model.shape[1]
    if model.first_stage is not None:
        config: Any = model.first_stage.network.config
        side *= 2 ** (len(config.block_out_channels) - 1)
    if side != settings.image_size:
        return f"the model draws images of {side}×{side}, but image_size is {settings.image_size}"
    return None


def _condition(model: Denoiser, settings: DatasetSettings) -> str | None:
    assert settings.condition is not None
    given = "prompts" if settings.condition.prompts else "classes"
    if model.conditioner is None:
        return f"condition: found {given} in the protocol, but the model takes none"
    taken = "classes" if isinstance(model.conditioner, ClassLabels) else "prompts"
    if given != taken:
        return f"condition: found {given} in the protocol, but the model takes {taken}"
    if isinstance(model.conditioner, ClassLabels) and settings.condition.classes:
        known = model.conditioner.classes
        if settings.condition.classes > known:
            return f"condition.classes is {settings.condition.classes}, but the model has {known} classes"
    return None


def _guidance(model: Denoiser, settings: DatasetSettings) -> str | None:
    if settings.sampler.guidance_scale != 1 and model.conditioner is None:
        return f"sampler.guidance_scale is {settings.sampler.guidance_scale}, but the model takes no condition"
    return None


def _sampler(model: Denoiser, settings: DatasetSettings) -> str | None:
    try:
        model.sampler(settings.sampler)
    except ValueError as error:
        return str(error)
    return None
