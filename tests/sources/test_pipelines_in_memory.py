"""A pipeline in memory gives the very model that its folder gives, and stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.pipelines.deprecated.latent_diffusion_uncond.pipeline_latent_diffusion_uncond import LDMPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from tiny_clip import tiny_clip

from quest.artifacts import ArtifactError, Manifest
from quest.diffusion import denoiser as denoisers
from quest.diffusion.conditioners import TextEncoder
from quest.sources import pipelines


def pixel(folder: Path, make_unet: Callable[..., UNet2DModel]) -> Any:
    return DDPMPipeline(make_unet(), DDPMScheduler(beta_schedule="linear"))


def latent(folder: Path, make_unet: Callable[..., UNet2DModel]) -> Any:
    vqvae = VQModel(block_out_channels=(32,), num_vq_embeddings=16, scaling_factor=0.5)
    schedule: Any = DDPMScheduler()
    return LDMPipeline(vqvae, make_unet(in_channels=3, out_channels=3), schedule).to(torch.float16)


def text(folder: Path, make_unet: Callable[..., UNet2DModel]) -> Any:
    blocks: dict[str, Any] = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    build: Any = StableDiffusionPipeline
    return build(
        vae=AutoencoderKL(block_out_channels=(32,), latent_channels=4),
        **tiny_clip(folder),
        unet=UNet2DConditionModel(
            sample_size=8, block_out_channels=(32,), layers_per_block=1, cross_attention_dim=16, **blocks
        ),
        scheduler=PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.mark.parametrize("make", [pixel, latent, text])
def test_the_same_model_as_from_its_folder(
    make: Callable[..., Any], make_unet: Callable[..., UNet2DModel], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    pipeline = make(tmp_path / "tokenizer", make_unet)
    pipeline.save_pretrained(tmp_path / "folder")
    files = tmp_path / "memory.safetensors", tmp_path / "folder.safetensors"
    models = pipelines.of_pipeline(pipeline), pipelines.open_source(tmp_path / "folder")
    for file, model in zip(files, models, strict=True):
        denoisers.save(file, model, Manifest(kind="model"))
    assert files[0].read_bytes() == files[1].read_bytes()
    assert models[0].network is pipeline.unet, "shared, not copied"


def test_the_pipelines_tokenizer_stays_as_it_is(make_unet: Callable[..., UNet2DModel], tmp_path: Path) -> None:
    pipeline = text(tmp_path / "tokenizer", make_unet)
    before = pipeline.tokenizer.backend_tokenizer.to_str()
    model = pipelines.of_pipeline(pipeline)
    assert pipeline.tokenizer.backend_tokenizer.to_str() == before
    assert isinstance(model.conditioner, TextEncoder)
    assert len(model.conditioner.tokenizer.encode("a").ids) == 6, "padded to the model's length"


def test_a_pipeline_of_another_network(make_unet: Callable[..., UNet2DModel]) -> None:
    pipeline = DDPMPipeline(make_unet(), DDPMScheduler())
    pipeline.register_modules(unet=DiTTransformer2DModel(num_layers=1, num_attention_heads=1, attention_head_dim=4))
    with pytest.raises(ArtifactError, match=r"the pipeline: unet is 'DiTTransformer2DModel'; known are .*UNet2DModel"):
        pipelines.of_pipeline(pipeline)


def test_nothing_to_condition_it(make_unet: Callable[..., UNet2DModel], tmp_path: Path) -> None:
    pipeline = text(tmp_path / "tokenizer", make_unet)
    pipeline.register_modules(text_encoder=None)
    with pytest.raises(ArtifactError, match="the U-Net takes a context, but there is no encoder that gives one"):
        pipelines.of_pipeline(pipeline)
