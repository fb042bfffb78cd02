"""Pipelines as others make them: built with plain diffusers, random weights, tiny."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from tiny_clip import tiny_clip

FEW: dict[str, Any] = {
    "calibration": {"samples_per_step": 4},
    "quantizer": {"weight_search": "max"},
    "reconstruction": {"iterations": 2, "samples": 4, "batch_size": 2},
    "methods": {
        "quest": {"tla_epochs": 1, "tla_samples": 2, "cma_epochs": 1, "cma_samples": 2},
        "q_diffusion": {"iterations": 1, "samples": 4},
        "ptqd": {"iterations": 1, "samples": 4, "trajectories": 4, "held_out": 2},
        "efficientdm": {"trajectories": 1, "batch_size": 2, "rank": 2},
        "traq": {"passes": 4, "batch_size": 2, "trajectories": 2, "draws": 1},
    },
    "images": 2,
    "batch_size": 1,
}


def unet(**changes: Any) -> UNet2DModel:
    """An 8×8 network of one channel."""
    torch.manual_seed(0)
    config: dict[str, Any] = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16)}
    config |= {"layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 8}
    config |= {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return UNet2DModel(**(config | changes)).eval()


def pixels() -> DDPMPipeline:
    """Unconditional, of pixels."""
    return DDPMPipeline(unet(), DDPMScheduler(beta_schedule="linear"))


def texts(folder: Path, prediction: Any = "v_prediction") -> StableDiffusionPipeline:
    """Stable Diffusion as 2.x is, in small: latents of a KL first stage, a text encoder, v-prediction.

    folder: for the files that its tokenizer is read from.
    """
    torch.manual_seed(0)
    blocks: dict[str, Any] = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    build: Any = StableDiffusionPipeline
    return build(
        vae=AutoencoderKL(block_out_channels=(8,), latent_channels=4, norm_num_groups=4, sample_size=8),
        **tiny_clip(folder),
        unet=UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8,),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=4,
            **blocks,
        ),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1, prediction_type=prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
