"""How the embedded models are built and trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from quest.config.values import NonNegative, Positive, Rate, Settings


class UNetSettings(Settings):
    """Architecture of an embedded model (diffusers' UNet2DModel; UNet2DConditionModel with a condition)."""

    channels: tuple[Positive, ...]
    layers_per_block: Positive = 2
    attention: tuple[bool, ...] = Field(
        description="attention at each resolution, highest first; to the condition too where there is one"
    )
    attention_head_dim: Positive = 8
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class TransformerSettings(Settings):
    """Architecture of an embedded model of classes instead (diffusers' DiTTransformer2DModel)."""

    layers: Positive
    heads: Positive
    head_dim: Positive = Field(default=32, description="channels of a head; of a token, that times heads")
    patch_size: Positive = Field(default=2, description="side of the square of latents that is a token")


class AutoencoderSettings(Settings):
    """First stage of an embedded latent model (diffusers' VQModel or AutoencoderKL) and its training."""

    kind: Literal["vq", "kl"]
    channels: tuple[Positive, ...] = Field(description="of each resolution, which halves from one to the next")
    latent_channels: Positive
    codes: Positive = Field(default=512, description="size of the codebook (vq)")
    steps: Positive = Field(default=4_000, description="optimizer steps")
    batch_size: Positive = 256
    lr: Rate = 8e-4


class ClipTrainingSettings(Settings):
    """CLIP model of an embedded text-conditional dataset: its text encoder, and its CLIP score."""

    width: Positive = Field(default=96, description="channels of both transformers and of the embedding")
    head_width: Positive = 24
    text_layers: Positive = 2
    vision_layers: Positive = 3
    patch_size: Positive = 4
    tokens: Positive = Field(default=16, description="length that captions are padded to")
    steps: Positive = Field(default=2_000, description="optimizer steps, of one picture of each caption")
    lr: Rate = 5e-4


class PretrainSettings(Settings):
    """How an embedded model is trained; only the `pretrain` rules read this."""

    unet: UNetSettings | None = Field(default=None, description="the network; or `transformer`")
    transformer: TransformerSettings | None = None
    autoencoder: AutoencoderSettings | None = Field(default=None, description="set for latent models only")
    first_stage: Path | None = Field(
        default=None,
        description="model artifact whose first stage is used as it is, for a model that shares the latents, classes, "
        "classifier and reference of another dataset; instead of `autoencoder`",
    )
    clip: ClipTrainingSettings | None = Field(default=None, description="set for models of prompts only")
    images: Positive = Field(default=100_000, description="pictures to train on, where a program draws them")
    steps: Positive = Field(description="optimizer steps of the denoiser")
    batch_size: Positive = 512
    lr: Rate = 4e-4
    weight_decay: NonNegative = 1e-4
    ema: Annotated[float, Field(gt=0, lt=1)] = 0.999
    condition_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="share of the samples that are trained without their condition, for guidance"
    )
    snr_cap: Rate | None = Field(
        default=None,
        description="γ of min-SNR weighting (Hang et al. 2023): less weight where there is little noise; without, all "
        "noise levels count alike",
    )
    classifier_steps: Positive = Field(default=2_000, description="optimizer steps of the feature extractor")
    classifier_width: Positive = Field(default=64, description="features of the extractor")
    seed: int = 0

    @model_validator(mode="after")
    def _fits_together(self) -> PretrainSettings:
        if (self.unet is None) == (self.transformer is None):
            found = "neither" if self.unet is None else "both"
            raise ValueError(f"unet and transformer: found {found}; a model has one network, so set one of them")
        if self.autoencoder is not None and self.first_stage is not None:
            raise ValueError(
                "autoencoder and first_stage are both set; a first stage is trained or taken, so leave one out"
            )
        return self
