"""DiTTransformer2DModel: a class, and adaptive norms of timestep and class in each block (Peebles and Xie 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from torch import Tensor, nn

from quest.architectures import Inputs, Temporal, register
from quest.architectures.common import Transformer
from quest.quantization.roles import Role


@register
class DiT(Transformer):
    """Its context is (N,) int64 classes, the one behind the last of them for none. Every block embeds timestep and
    class anew and adds the two, so what depends on the timestep alone ends before its projections."""

    networks = (DiTTransformer2DModel,)
    blocks = (BasicTransformerBlock,)
    token_blocks = (BasicTransformerBlock,)
    own: ClassVar[Mapping[str, Role]] = {"proj_out_1": Role.TIME_PROJECTION, "proj_out_2": Role.LAST}
    time = "transformer_blocks.*.norm1.emb.timestep_embedder"  # each block has one
    first = "transformer_blocks.0.attn1.to_q"

    def blank(self) -> Inputs:
        return super().blank()._replace(context=self.zeros(1, dtype=torch.long))

    def temporal(self) -> Temporal:
        embeddings = {
            f"transformer_blocks.{number}.norm1.emb.timestep_embedder": block.norm1.emb.timestep_embedder
            for number, block in enumerate(self.network.transformer_blocks)
        }
        layers = tuple(f"{name}.{layer}" for name in embeddings for layer in ("linear_1", "linear_2"))
        modules = list(embeddings.values())
        return Temporal(TimestepEmbeddings(modules), modules[0], layers)


class TimestepEmbeddings(nn.Module):
    """The timestep's embedding in each block, as one module on the network's layers: all are told the same."""

    def __init__(self, embeddings: list[nn.Module]):
        super().__init__()
        self.embeddings = nn.ModuleList(embeddings)

    def forward(self, *args: Any, **named: Any) -> Tensor:
        """(n, blocks · channels), one block's after another. The arguments are those of diffusers' TimestepEmbedding:
        the sinusoidal embedding (n, channels)."""
        return torch.cat([embedding(*args, **named) for embedding in self.embeddings], dim=1)
