"""DiTTransformer2DModel: a class, and adaptive norms of timestep and class in each block (Peebles and Xie 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

from quest.architectures import Inputs, register
from quest.architectures.common import Transformer
from quest.quantization.roles import Role


@register
class DiT(Transformer):
    """Its context is (N,) int64 classes, the one behind the last of them for none. Every block embeds timestep and
    class anew, so nothing depends on the timestep alone."""

    networks = (DiTTransformer2DModel,)
    blocks = (BasicTransformerBlock,)
    token_blocks = (BasicTransformerBlock,)
    own: ClassVar[Mapping[str, Role]] = {"proj_out_1": Role.TIME_PROJECTION, "proj_out_2": Role.LAST}
    time = "transformer_blocks.*.norm1.emb.timestep_embedder"  # each block has one
    first = "transformer_blocks.0.attn1.to_q"

    def blank(self) -> Inputs:
        return super().blank()._replace(context=self.zeros(1, dtype=torch.long))
