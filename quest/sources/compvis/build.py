"""The networks and the noise schedule of an `Architecture`, diffusers' classes, without weights on the meta device."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from quest import architectures
from quest.diffusion.conditioners import ClassEmbedder
from quest.sources.compvis.config import Architecture

_PLAIN, _ATTENDING = ("DownBlock2D", "UpBlock2D"), ("AttnDownBlock2D", "AttnUpBlock2D")


def build_schedule(architecture: Architecture) -> DDIMScheduler:
    """The noise schedule, with the released sampler's timesteps (one later than a multiple) and last step (to ᾱ₀)."""
    return DDIMScheduler(
        beta_start=architecture.linear_start,
        beta_end=architecture.linear_end,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def build_unet(architecture: Architecture) -> UNet2DModel | UNet2DConditionModel:
    """The noise predictor without weights, on the meta device."""
    unet = architecture.unet_config
    levels = range(len(unet.channel_mult))
    channels = [unet.model_channels * multiple for multiple in unet.channel_mult]
    common: dict[str, Any] = {
        "sample_size": unet.image_size,
        "in_channels": unet.in_channels,
        "out_channels": unet.out_channels,
        "block_out_channels": channels,
        "layers_per_block": unet.num_res_blocks,
    }
    resize = "resnet" if unet.resblock_updown else "conv"
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if unet.resblock_updown else _PLAIN
    attending = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D") if unet.use_spatial_transformer else _ATTENDING
    down = [(attending if unet.attends(level) else plain)[0] for level in levels]
    up = [(attending if unet.attends(level) else plain)[1] for level in reversed(levels)]
    heads: Any = tuple(map(unet.heads, channels))
    shift = "scale_shift" if unet.use_scale_shift_norm else "default"
    with torch.device("meta"):
        if unet.use_spatial_transformer:
            return UNet2DConditionModel(
                **common,
                down_block_types=tuple(down),
                up_block_types=tuple(up),
                resnet_time_scale_shift=shift,
                cross_attention_dim=unet.context_dim or 0,
                attention_head_dim=heads,  # a number of heads, whatever its name
            )
        network = UNet2DModel(
            **common,
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            downsample_type=resize,
            upsample_type=resize,
            resnet_time_scale_shift=shift,
            attn_norm_num_groups=32,
            attention_head_dim=channels[0] // unet.heads(channels[0]),
        )
    known = architectures.of(network)
    for name, attention in known.attentions().items():
        known.set_heads(name, unet.heads(attention.inner_dim))  # type: ignore[arg-type]
    return network


def build_autoencoder(architecture: Architecture) -> VQModel | AutoencoderKL:
    """The first stage without weights, on the meta device."""
    stage, config = architecture.first_stage, architecture.first_stage.ddconfig
    common: dict[str, Any] = {
        "in_channels": config.in_channels,
        "out_channels": config.out_ch,
        "block_out_channels": tuple(config.ch * multiple for multiple in config.ch_mult),
        "down_block_types": ("DownEncoderBlock2D",) * len(config.ch_mult),
        "up_block_types": ("UpDecoderBlock2D",) * len(config.ch_mult),
        "layers_per_block": config.num_res_blocks,
        "latent_channels": config.z_channels,
        "sample_size": config.resolution,
        "scaling_factor": architecture.scale_factor,
    }
    with torch.device("meta"):
        if stage.kind == "kl":
            return AutoencoderKL(**common)
        return VQModel(**common, num_vq_embeddings=stage.n_embed, vq_embed_dim=stage.embed_dim)


def build_conditioner(architecture: Architecture) -> ClassEmbedder:
    """The class embedder without weights, on the meta device."""
    with torch.device("meta"):
        return ClassEmbedder(architecture.n_classes, architecture.unet_config.context_dim or 0)
