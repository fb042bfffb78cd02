"""What diffusers' networks have in common: roles by the module that holds a layer, attention modules, conditions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import PatchEmbed, PixArtAlphaTextProjection, TimestepEmbedding
from diffusers.models.normalization import (
    AdaLayerNormContinuous,
    AdaLayerNormSingle,
    AdaLayerNormZero,
    AdaLayerNormZeroSingle,
    SD35AdaLayerNormZeroX,
)
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_flux import FluxAttention
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from quest.architectures import Architecture, Inputs, Places
from quest.architectures.attention import Processor, quantize_products
from quest.quantization.layers import Switches
from quest.quantization.roles import Role

_ATTENTION = {
    "to_q": Role.ATTENTION_Q,
    "to_k": Role.ATTENTION_K,
    "to_v": Role.ATTENTION_V,
    "to_out.0": Role.ATTENTION_OUT,
    # Of a context that attends beside the image, and so depends on the timestep as well.
    "add_q_proj": Role.ATTENTION_Q,
    "add_k_proj": Role.ATTENTION_K,
    "add_v_proj": Role.ATTENTION_V,
    "to_add_out": Role.ATTENTION_OUT,
}
_ADAPTIVE_NORM = {"linear": Role.TIME_PROJECTION}
# Path of a layer inside the module that gives it its role.
_INSIDE: dict[type[nn.Module], dict[str, Role]] = {
    TimestepEmbedding: {"linear_1": Role.TIME_MLP, "linear_2": Role.TIME_MLP, "cond_proj": Role.TIME_MLP},
    ResnetBlock2D: {
        "conv1": Role.CONVOLUTION,
        "conv2": Role.CONVOLUTION,
        "time_emb_proj": Role.TIME_PROJECTION,
        "conv_shortcut": Role.SHORTCUT,
    },
    Attention: _ATTENTION,
    FluxAttention: _ATTENTION,
    FeedForward: {"net.0.proj": Role.FEED_FORWARD, "net.2": Role.FEED_FORWARD},
    Transformer2DModel: {"proj_in": Role.PROJECTION, "proj_out": Role.PROJECTION},
    Downsample2D: {"conv": Role.DOWNSAMPLE},
    Upsample2D: {"conv": Role.UPSAMPLE},
    PatchEmbed: {"proj": Role.FIRST},
    PixArtAlphaTextProjection: {"linear_1": Role.CONDITION, "linear_2": Role.CONDITION},
    AdaLayerNormZero: _ADAPTIVE_NORM,
    AdaLayerNormZeroSingle: _ADAPTIVE_NORM,
    AdaLayerNormSingle: _ADAPTIVE_NORM,
    AdaLayerNormContinuous: _ADAPTIVE_NORM,
    SD35AdaLayerNormZeroX: _ADAPTIVE_NORM,
}
# Keys and values of a context that depends on neither the timestep nor the image.
_CROSS_ATTENTION = {"to_k": Role.CROSS_ATTENTION_K, "to_v": Role.CROSS_ATTENTION_V}


class OfDiffusers(Architecture):
    """A network made of diffusers' modules. own: roles of single layers by name, which win; tokens: of a blank context,
    as many as its pipelines have of a prompt."""

    own: ClassVar[Mapping[str, Role]]
    tokens: ClassVar[int] = 77

    def own_roles(self) -> dict[str, Role]:
        roles: dict[str, Role] = {}
        for name, module in self.network.named_modules():
            inside = next((parts for kind, parts in _INSIDE.items() if isinstance(module, kind)), {})
            if isinstance(module, Attention) and module.is_cross_attention:
                inside = inside | _CROSS_ATTENTION
            roles |= {f"{name}.{part}": role for part, role in inside.items()}
        return roles | self.own  # type: ignore

    def attentions(self) -> dict[str, nn.Module]:
        kinds = (Attention, FluxAttention)
        return {name: module for name, module in self.network.named_modules() if isinstance(module, kinds)}

    def quantize_products(self, name: str, switches: Switches) -> Processor:
        return quantize_products(name, self.network.get_submodule(name), switches)

    def zeros(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Zeros on the network's device."""
        return torch.zeros(*shape, dtype=dtype, device=next(self.network.parameters()).device)


class Transformer(OfDiffusers):
    """A network of patches that are tokens from its first layer to its last. Conditional, all of them."""

    time: ClassVar[str]  # the module that embeds the timestep
    first: ClassVar[str] = "transformer_blocks.0.attn.to_q"

    @property
    def shape(self) -> tuple[int, int, int]:
        config = self.network.config
        return config.in_channels, config.sample_size, config.sample_size

    @property
    def conditional(self) -> bool:
        return True

    def places(self) -> Places:
        return Places((f"{self.time}.linear_1", f"{self.time}.linear_2"), self.first)

    def prediction(self, output: Any) -> Tensor:
        """Some networks give a variance in further channels."""
        return output.sample[:, : self.shape[0]]


class Joined(nn.Module):
    """A block that gives the tokens of a context and of an image, as a module that gives them in one row."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, *args: Any, **named: Any) -> Tensor:
        """(N, tokens of both, channels). The last block of some networks has no context to give."""
        return torch.cat([tokens for tokens in self.block(*args, **named) if tokens is not None], 1)


def given(inputs: Inputs, *names: str) -> list[Tensor]:
    """What a call is told beside its context, by name. Raises ValueError naming what is missing."""
    added = inputs.added or {}
    if missing := [name for name in names if name not in added]:
        raise ValueError(
            f"this network is also told {', '.join(names)}; {', '.join(missing)} missing from what was given "
            f"({', '.join(added) or 'nothing'})"
        )
    return [added[name] for name in names]


def side_of(tokens: int) -> int:
    """The side of a square of so many tokens. Raises ValueError for another number."""
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ValueError(f"found {tokens} tokens of an image, expected those of a square")
    return side
