"""diffusers' attention module, with its products on grids."""

from __future__ import annotations

from typing import Any

from diffusers.models.attention_processor import Attention
from torch import Tensor

from quest.quantization.attention import QuantizedAttention


class AttentionProcessor(QuantizedAttention):
    """What diffusers' Attention computes with: its eager AttnProcessor, but that the products are quantized."""

    def __call__(  # not `forward`: diffusers reads the signature of __call__ to choose what it passes
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        image_shape = hidden_states.shape if hidden_states.ndim == 4 else None
        if image_shape:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        mask = attn.prepare_attention_mask(attention_mask, context.shape[1], len(context))

        q = attn.head_to_batch_dim(attn.to_q(hidden_states))
        k = attn.head_to_batch_dim(attn.to_k(context))
        v = attn.head_to_batch_dim(attn.to_v(context))
        hidden_states = attn.batch_to_head_dim(self.forward(q, k, v, attn.scale, mask))
        hidden_states = attn.to_out[1](attn.to_out[0](hidden_states))
        if image_shape:
            hidden_states = hidden_states.transpose(1, 2).reshape(image_shape)
        if attn.residual_connection:
            hidden_states = hidden_states + residual
        return hidden_states / attn.rescale_output_factor


def set_heads(attention: Attention, heads: int) -> None:
    """Split the channels of an attention into ``heads``, whatever its network's config says."""
    attention.heads = attention.sliceable_head_dim = heads
    attention.scale = (attention.inner_dim // heads) ** -0.5 if attention.scale_qk else 1.0
