"""Pipelines of the kinds that draw by themselves, built with plain diffusers: random weights, tiny."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.pipelines.dit.pipeline_dit import DiTPipeline
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import PixArtAlphaPipeline
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import PixArtSigmaPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from tiny_clip import tiny_clip
from torch import nn

from quest.deploy.packed.pipelines import QuestClassPipeline
from tests.own.brought import unet

TEXT = 12  # channels of the large text encoder
POOLED = 16  # of CLIP's projection


def filled(network: Any) -> Any:
    """The network with no weight zero: some families begin with zeros."""
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1 or name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3 * parameter[0].numel() ** -0.5)
    return network.eval()


def kl(latent_channels: int = 4, **more: Any) -> AutoencoderKL:
    """A first stage that halves nothing."""
    blocks: Any = (8,)
    return AutoencoderKL(
        block_out_channels=blocks, latent_channels=latent_channels, norm_num_groups=4, sample_size=8, **more
    ).eval()


def t5(channels: int = TEXT) -> tuple[Any, Any]:
    """A T5 encoder of a few words, and its tokenizer."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    words = Tokenizer(WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "b": 4}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    config = T5Config(vocab_size=5, d_model=channels, d_kv=6, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval(), tokenizer


def clip(folder: Path) -> tuple[Any, Any]:
    """CLIP's text encoder with its projection, and its tokenizer."""
    from transformers import CLIPTextModelWithProjection

    made = tiny_clip(folder)
    config = made["text_encoder"].config
    config.projection_dim, config.num_hidden_layers = POOLED, 2
    return CLIPTextModelWithProjection(config).eval(), made["tokenizer"]


def dit(_folder: Path) -> DiTPipeline:
    """Classes, learned sigma."""
    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, out_channels=8, num_layers=2, sample_size=8
    )
    build: Any = DiTPipeline
    return build(filled(network), kl(), DDIMScheduler(clip_sample=False))


def pixart(_folder: Path, sized: bool = False) -> PixArtSigmaPipeline | PixArtAlphaPipeline:
    """Text of T5 with a mask. sized: of 128×128 latents, where the network is told the image's size."""
    torch.manual_seed(0)
    network = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=24,
        sample_size=128 if sized else 8,
        patch_size=32 if sized else 2,
        caption_channels=TEXT,
    )
    text_encoder, tokenizer = t5()
    build: Any = PixArtAlphaPipeline if sized else PixArtSigmaPipeline
    # Attention of all of the many pixels would take longer than all else.
    return build(
        tokenizer, text_encoder, kl(mid_block_add_attention=not sized), filled(network), DPMSolverMultistepScheduler()
    )


def sd3(folder: Path) -> StableDiffusion3Pipeline:
    """Flow matching, shifted; three text encoders."""
    torch.manual_seed(0)
    network = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * POOLED,
        caption_projection_dim=16,
        pooled_projection_dim=2 * POOLED,
        pos_embed_max_size=8,
    )
    (one, words), (two, words_2), (three, words_3) = clip(folder / "1"), clip(folder / "2"), t5(2 * POOLED)
    build: Any = StableDiffusion3Pipeline
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return build(filled(network), scheduler, kl(shift_factor=0.1), one, words, two, words_2, three, words_3)


def flux(folder: Path, guided: bool = True) -> FluxPipeline:
    """Flow matching, shifted by the number of tokens; packed latents, guidance embedded."""
    torch.manual_seed(0)
    axes: Any = (2, 2, 4)
    network = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        pooled_projection_dim=POOLED,
        guidance_embeds=guided,
        axes_dims_rope=axes,
    )
    made, (text_encoder_2, tokenizer_2) = tiny_clip(folder), t5()
    build: Any = FluxPipeline
    return build(
        FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=guided),
        kl(shift_factor=0.1),
        made["text_encoder"].eval(),
        made["tokenizer"],
        text_encoder_2,
        tokenizer_2,
        filled(network),
    )


def sdxl(folder: Path) -> StableDiffusionXLPipeline:
    """Two text encoders, their pooled text, and the image's size."""
    torch.manual_seed(0)
    blocks: dict[str, Any] = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 16),
        "attention_head_dim": (1, 2),
    }
    network = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        cross_attention_dim=16 + 16,
        norm_num_groups=4,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=POOLED + 6 * 4,
        **blocks,
    )
    made, (text_encoder_2, tokenizer_2) = tiny_clip(folder / "1"), clip(folder / "2")
    build: Any = StableDiffusionXLPipeline
    return build(
        vae=kl(),
        text_encoder=made["text_encoder"].eval(),
        text_encoder_2=text_encoder_2,
        tokenizer=made["tokenizer"],
        tokenizer_2=tokenizer_2,
        unet=filled(network),
        scheduler=EulerDiscreteScheduler(steps_offset=1),
        add_watermarker=False,
    )


def classes(_folder: Path) -> DDPMPipeline:
    """A U-Net with diffusers' own class embedding, in a pipeline that cannot call it."""
    return DDPMPipeline(unet(num_class_embeds=3), DDPMScheduler())


def of_classes(folder: Path) -> QuestClassPipeline:
    """The same in one that can."""
    pipeline = classes(folder)
    return QuestClassPipeline(pipeline.unet, pipeline.scheduler)


MAKE = {
    "dit": dit,
    "classes": of_classes,
    "pixart-sigma": pixart,
    "pixart-alpha": partial(pixart, sized=True),
    "sd3": sd3,
    "flux": flux,
    "flux-schnell": partial(flux, guided=False),
    "sdxl": sdxl,
}
CLASS = {
    "dit": "DiTPipeline",
    "classes": "QuestClassPipeline",
    "pixart-sigma": "PixArtSigmaPipeline",
    "pixart-alpha": "PixArtAlphaPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
    "flux-schnell": "FluxPipeline",
    "sdxl": "StableDiffusionXLPipeline",
}
SIZES = {"flux": 16, "flux-schnell": 16}
"""Pixels of a side; the others' networks say it."""
