"""SD3Transformer2DModel: image and text attend to each other in two streams of layers (Esser et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from diffusers.models.attention import FeedForward, JointTransformerBlock
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from torch import nn

from quest.architectures import Inputs, register
from quest.architectures.common import Joined, Transformer, given
from quest.quantization.roles import Role


@register
class SD3(Transformer):
    """Its context is (N, L, d) of the text encoders; ``added`` has pooled_projections, (N, d). The adaptive norms
    depend on both timestep and text."""

    networks = (SD3Transformer2DModel,)
    blocks = (JointTransformerBlock,)
    token_blocks = (FeedForward,)  # a block gives two sequences
    own: ClassVar[Mapping[str, Role]] = {"context_embedder": Role.CONDITION, "proj_out": Role.LAST}
    time = "time_text_embed.timestep_embedder"
    tokens = 333

    def arguments(self, inputs: Inputs) -> tuple[Any, ...]:
        return inputs.x, inputs.context, *given(inputs, "pooled_projections"), inputs.timesteps

    @classmethod
    def timestep(cls, args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        return named["timestep"] if "timestep" in named else args[3]

    def blank(self) -> Inputs:
        config = self.network.config
        context = self.zeros(1, self.tokens, config.joint_attention_dim)
        pooled = self.zeros(1, config.pooled_projection_dim)
        return super().blank()._replace(context=context, added={"pooled_projections": pooled})

    def with_one_output(self, block: nn.Module) -> nn.Module:
        return Joined(block) if isinstance(block, self.blocks) else block
