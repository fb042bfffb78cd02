"""Published pipelines in small: folders as diffusers saves them, of untrained networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

LENGTH = 8
"""Tokens that the text encoder reads, the marks of beginning and end among them."""
_WORDS = ["a</w>", "b</w>", "c</w>", "<|startoftext|>", "<|endoftext|>"]


@pytest.fixture
def make_conditional() -> Callable[..., UNet2DConditionModel]:
    """An untrained 8×8 UNet2DConditionModel of 4 latent channels and contexts of 16."""

    def make(**changes: Any) -> UNet2DConditionModel:
        torch.manual_seed(0)
        config: dict[str, Any] = {
            "sample_size": 8,
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "norm_num_groups": 4,
            "attention_head_dim": 2,
            "cross_attention_dim": 16,
        }
        return UNet2DConditionModel(**(config | changes)).eval()

    return make


@pytest.fixture
def make_autoencoder() -> Callable[..., Any]:
    """An untrained first stage between 16×16 images and 8×8 latents of 4 channels."""

    def make(kind: Any = AutoencoderKL, **changes: Any) -> Any:
        torch.manual_seed(1)
        config: dict[str, Any] = {
            "block_out_channels": (8, 8),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "latent_channels": 4,
            "norm_num_groups": 4,
            "sample_size": 16,
        }
        return kind(**(config | changes)).eval()

    return make


@pytest.fixture
def publish(tmp_path: Path, make_unet: Callable[..., UNet2DModel]) -> Callable[..., Path]:
    """A pipeline's folder: of a U-Net (the tiny one if none is given), a scheduler, and a first stage if there is one.

    A text encoder of width 16 comes with a U-Net that takes a context. how: arguments to diffusers' `save_pretrained`.
    """

    def make(unet: Any = None, scheduler: Any = None, first_stage: Any = None, **how: Any) -> Path:
        folder = tmp_path / "published"
        unet, scheduler = unet or make_unet(), scheduler or DDPMScheduler(clip_sample=False)
        parts = {"unet": unet, "scheduler": scheduler} | ({"vae": first_stage} if first_stage is not None else {})
        names = {name: ["diffusers", type(part).__name__] for name, part in parts.items()}
        unet.save_pretrained(folder / "unet", **how)
        scheduler.save_pretrained(folder / "scheduler")
        if first_stage is not None:
            first_stage.save_pretrained(folder / "vae", **how)
        if isinstance(unet, UNet2DConditionModel):
            _write_text_encoder(folder)
            names |= {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
        (folder / "model_index.json").write_text(json.dumps(names))
        return folder

    return make


@pytest.fixture
def edit() -> Callable[..., None]:
    """Change keys of a JSON file; those that are given as ... are taken out."""

    def change(file: Path, **changes: Any) -> None:
        content = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))

    return change


def _write_text_encoder(folder: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(2)
    config = CLIPTextConfig(
        vocab_size=len(_WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=3,
        eos_token_id=4,
        pad_token_id=4,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir(exist_ok=True)
    (tokenizer / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(_WORDS)}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    (tokenizer / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>", "model_max_length": LENGTH})
    )
