"""FluxTransformer2DModel: blocks of two streams, then blocks of one, for image and text (Black Forest Labs 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.transformers.transformer_flux import (
    FluxSingleTransformerBlock,
    FluxTransformer2DModel,
    FluxTransformerBlock,
)
from torch import Tensor, nn

from quest.architectures import Inputs, register
from quest.architectures.common import Joined, Transformer, given, side_of
from quest.quantization.roles import Role

_SIDE = 128  # of the latents of 1024 pixels, which the config does not say
_PATCH = 2  # of which the pipeline makes a token
_TIMESTEPS = 1000  # of the scheduler; the network is told fractions of them


@register
class Flux(Transformer):
    """Its context is (N, L, d) of a text encoder; ``added`` has pooled_projections, (N, d), and of a network that was
    distilled from a guided one the guidance scale, (N,).

    x is latents (N, C, H, W), square, as for every other network; the tokens that this one takes are made here.
    """

    networks = (FluxTransformer2DModel,)
    blocks = (FluxTransformerBlock, FluxSingleTransformerBlock)
    token_blocks = (FeedForward,)  # a block gives two sequences
    own: ClassVar[Mapping[str, Role]] = {
        "x_embedder": Role.FIRST,
        "context_embedder": Role.CONDITION,
        "proj_out": Role.LAST,
        **{f"time_text_embed.guidance_embedder.linear_{i}": Role.CONDITION for i in (1, 2)},
    }
    time = "time_text_embed.timestep_embedder"
    tokens = 512

    @property
    def shape(self) -> tuple[int, int, int]:
        config = self.network.config
        side = config.get("sample_size") or _SIDE
        return config.in_channels // _PATCH**2, side, side

    def own_roles(self) -> dict[str, Role]:
        """Where there is one stream, its last layer takes what attention and feed-forward give, side by side."""
        roles = super().own_roles()
        for name, module in self.network.named_modules():
            if isinstance(module, FluxSingleTransformerBlock):
                roles |= {f"{name}.{layer}": Role.FEED_FORWARD for layer in ("proj_mlp", "proj_out")}
        return roles

    def arguments(self, inputs: Inputs) -> tuple[Any, ...]:
        x, context = inputs.x, inputs.context
        names = ("pooled_projections", "guidance") if self.network.config.guidance_embeds else ("pooled_projections",)
        pooled, *guidance = given(inputs, *names)
        side, words = x.shape[2] // _PATCH, 0 if context is None else context.shape[1]
        row, column = torch.meshgrid(*[torch.arange(side, device=x.device, dtype=x.dtype)] * 2, indexing="ij")
        places = torch.stack([torch.zeros_like(row), row, column], 2).flatten(0, 1)
        timesteps = inputs.timesteps.to(x.dtype) / _TIMESTEPS
        return _tokens(x), context, pooled, timesteps, places, places.new_zeros(words, 3), *guidance

    @classmethod
    def timestep(cls, args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        return (named["timestep"] if "timestep" in named else args[3]) * _TIMESTEPS

    def prediction(self, output: Any) -> Tensor:
        return _image(output.sample)

    def blank(self) -> Inputs:
        config = self.network.config
        context = self.zeros(1, self.tokens, config.joint_attention_dim)
        added = {"pooled_projections": self.zeros(1, config.pooled_projection_dim)}
        added |= {"guidance": self.zeros(1)} if config.guidance_embeds else {}
        return super().blank()._replace(context=context, added=added)

    def with_one_output(self, block: nn.Module) -> nn.Module:
        return Joined(block) if isinstance(block, self.blocks) else block


def _tokens(x: Tensor) -> Tensor:
    """Latents (N, C, H, W) as patches (N, H/2 · W/2, 4 C)."""
    return nn.functional.pixel_unshuffle(x, _PATCH).flatten(2).transpose(1, 2)


def _image(tokens: Tensor) -> Tensor:
    """Inverse of `_tokens`."""
    side = side_of(tokens.shape[1])
    return nn.functional.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (side, side)), _PATCH)
