"""What a published configuration of latent diffusion says of a model, under its names."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, model_validator

from quest.config.reading import validate
from quest.config.values import ConfigError, Positive, Settings

_GROUPS = 32  # of every normalization of the released code


class UNetConfig(Settings):
    """`unet_config.params` of a published configuration."""

    image_size: Positive
    in_channels: Positive
    out_channels: Positive
    model_channels: Positive
    attention_resolutions: tuple[int, ...]
    num_res_blocks: Positive
    channel_mult: tuple[Positive, ...]
    num_heads: int = Field(default=-1, description="of every attention; -1 where num_head_channels says it")
    num_head_channels: int = Field(default=-1, description="channels of a head; -1 where num_heads says it")
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    use_spatial_transformer: bool = False
    transformer_depth: Literal[1] = 1
    context_dim: int | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> UNetConfig:
        name = "num_heads" if self.num_head_channels == -1 else "num_head_channels"
        value = getattr(self, name)
        if value < 1:
            raise ValueError(f"num_heads is {self.num_heads} and num_head_channels {self.num_head_channels}; set one")
        last = len(self.channel_mult) - 1
        for level, multiple in enumerate(self.channel_mult):
            channels = self.model_channels * multiple
            if channels % _GROUPS:
                raise ValueError(f"model_channels times {multiple} is {channels}, which {_GROUPS} groups do not divide")
            if (self.attends(level) or level == last) and channels % value:
                raise ValueError(f"{name} is {value}, which does not divide the {channels} channels of level {level}")
        if self.image_size % 2**last:
            raise ValueError(f"image_size is {self.image_size}, which {last + 1} levels cannot halve {last} times")
        if self.use_spatial_transformer != (self.context_dim is not None):
            raise ValueError("use_spatial_transformer and context_dim go together; one of them is missing")
        return self

    def heads(self, channels: int) -> int:
        """Heads of an attention over ``channels``."""
        return self.num_heads if self.num_head_channels == -1 else channels // self.num_head_channels

    def attends(self, level: int) -> bool:
        """Whether the blocks at resolution ``level`` (0 is the highest) have attention."""
        return 2**level in self.attention_resolutions


class AutoencoderConfig(Settings):
    """`first_stage_config.params.ddconfig`."""

    double_z: bool
    z_channels: Positive
    resolution: Positive
    in_channels: Positive
    out_ch: Positive
    ch: Positive
    ch_mult: tuple[Positive, ...]
    num_res_blocks: Positive
    attn_resolutions: tuple[()] = ()
    dropout: float = 0.0


class FirstStageConfig(Settings):
    """`first_stage_config.params`; kind: the class, VQModelInterface or AutoencoderKL."""

    kind: Literal["vq", "kl"]
    ddconfig: AutoencoderConfig
    embed_dim: Positive
    n_embed: int = 0


class Architecture(Settings):
    """A published model. linear_start and linear_end: of β, whose square root is linear in the timestep."""

    unet_config: UNetConfig
    first_stage: FirstStageConfig
    n_classes: int = Field(default=0, description="classes of the class embedder, the one for no class included")
    use_ema: bool = Field(description="whether the model is the moving average of the weights")
    scale_factor: float = Field(default=1.0, description="of the latents; a checkpoint's own wins")
    scale_by_std: bool = Field(default=False, description="whether the scale factor stands in the checkpoint")
    linear_start: float = 0.0015
    linear_end: float = 0.0195
    url: str = Field(default="", description="where the checkpoint was published")

    @model_validator(mode="after")
    def _classes_are_a_context(self) -> Architecture:
        if bool(self.n_classes) != self.unet_config.use_spatial_transformer:
            raise ValueError(
                f"n_classes is {self.n_classes}, but use_spatial_transformer is "
                f"{str(self.unet_config.use_spatial_transformer).lower()}: the classes are its context"
            )
        return self


def read_architecture(path: Path) -> Architecture:
    """Read an architecture from YAML or JSON. Raises ConfigError."""
    try:
        return validate(Architecture, yaml.safe_load(path.read_text(encoding="utf-8")), str(path))
    except OSError as error:
        raise ConfigError(
            f"architecture: {path}: {error.strerror}; those of the published models are config/models/*.yaml"
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
