"""PixArtTransformer2DModel: one adaptive norm, shifted by each block, and cross-attention (Chen et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from torch import Tensor, nn

from quest.architectures import Inputs, Temporal, register
from quest.architectures.common import Transformer, given
from quest.quantization.roles import Role

_SIZES = ("resolution", "aspect_ratio")  # which PixArt-α's network for 1024 pixels is told, (N, 2) and (N, 1)
_MASK = "encoder_attention_mask"  # (N, L), 1 where the context has a word; all of it counts without


@register
class PixArt(Transformer):
    """Its context is (N, L, d) of a text encoder; ``added`` may have a mask of that, and has the image's size where the
    network is told it."""

    networks = (PixArtTransformer2DModel,)
    blocks = (BasicTransformerBlock,)
    token_blocks = (BasicTransformerBlock,)
    own: ClassVar[Mapping[str, Role]] = {
        "proj_out": Role.LAST,
        **{f"adaln_single.emb.{size}_embedder.linear_{i}": Role.CONDITION for size in _SIZES for i in (1, 2)},
    }
    time = "adaln_single.emb.timestep_embedder"
    first = "transformer_blocks.0.attn1.to_q"
    tokens = 300

    def arguments(self, inputs: Inputs) -> tuple[Any, ...]:
        sizes = given(inputs, *_SIZES) if self.network.use_additional_conditions else (None, None)
        added = dict(zip(_SIZES, sizes, strict=True))
        return inputs.x, inputs.context, inputs.timesteps, added, None, None, (inputs.added or {}).get(_MASK)

    @classmethod
    def timestep(cls, args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        return named["timestep"] if "timestep" in named else args[2]

    def blank(self) -> Inputs:
        config = self.network.config
        context = self.zeros(1, self.tokens, config.caption_channels or config.cross_attention_dim)
        sizes = {"resolution": self.zeros(1, 2), "aspect_ratio": self.zeros(1, 1)}
        added = sizes if self.network.use_additional_conditions else None
        return super().blank()._replace(context=context, added=added)

    def temporal(self) -> Temporal:
        if self.network.use_additional_conditions:
            return super().temporal()
        entry = self.network.adaln_single
        layers = ("linear", "emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2")
        return Temporal(TemporalNorm(entry), entry, tuple(f"adaln_single.{name}" for name in layers))


class TemporalNorm(nn.Module):
    """The adaptive norm's shifts, scales and gates for all blocks, and the embedding that the last layer takes."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, *args: Any, **named: Any) -> Tensor:
        """(n, 7 · channels). The arguments are those of diffusers' AdaLayerNormSingle."""
        return torch.cat(self.norm(*args, **named), 1)
