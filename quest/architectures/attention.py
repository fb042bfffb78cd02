"""diffusers' attention modules, with their products on grids.

A processor here computes what the one of diffusers that it stands for does, but that the products are quantized. Where
they are not, and nothing is differentiated, that one itself computes: full precision is the pipeline's to the last bit.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    JointAttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from torch import Tensor, nn

from quest.quantization.attention import QuantizedAttention
from quest.quantization.layers import Switches

# Projection and norm of queries, keys and values: of what attends, and of a context that attends beside it.
_OWN = (("to_q", "norm_q"), ("to_k", "norm_k"), ("to_v", ""))
_ADDED = (("add_q_proj", "norm_added_q"), ("add_k_proj", "norm_added_k"), ("add_v_proj", ""))


class Processor(QuantizedAttention):
    """What an attention module computes with. plain: the processor of diffusers that it stands for.

    Its `__call__` is not `forward`: diffusers reads the signature of `__call__` to choose what it passes.
    """

    def __init__(self, switches: Switches, plain: Any):
        super().__init__(switches)
        self.plain = plain

    @property
    def off(self) -> bool:
        """Whether ``plain`` computes. Not where something is learned: the gradients of its kernels differ from run to
        run on a GPU."""
        return not self._switches.activations and not torch.is_grad_enabled()

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(N, tokens, heads, d) each to (N, tokens, heads·d)."""
        heads = q.shape[2]
        q, k, v = (each.transpose(1, 2).flatten(0, 1) for each in (q, k, v))
        return self.forward(q, k, v, q.shape[-1] ** -0.5).unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)


class AttentionProcessor(Processor):
    """AttnProcessor and AttnProcessor2_0: attention to itself or to a context."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        if self.off:
            return self.plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
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

        q = _normalized(attn, "norm_q", attn.head_to_batch_dim(attn.to_q(hidden_states)))
        k = _normalized(attn, "norm_k", attn.head_to_batch_dim(attn.to_k(context)))
        v = attn.head_to_batch_dim(attn.to_v(context))
        hidden_states = attn.batch_to_head_dim(self.forward(q, k, v, attn.scale, mask))
        hidden_states = _out(attn, hidden_states)
        if image_shape:
            hidden_states = hidden_states.transpose(1, 2).reshape(image_shape)
        if attn.residual_connection:
            hidden_states = hidden_states + residual
        return hidden_states / attn.rescale_output_factor


class JointProcessor(Processor):
    """JointAttnProcessor2_0: image and context attend to both, the image first (Stable Diffusion 3)."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if self.off:
            return self.plain(attn, hidden_states, encoder_hidden_states, attention_mask)
        streams = [_projected(attn, _OWN, hidden_states)]
        if encoder_hidden_states is not None:
            streams.append(_projected(attn, _ADDED, encoder_hidden_states))
        attended = self.attend(*(torch.cat(parts, 1) for parts in zip(*streams, strict=True)))
        if encoder_hidden_states is None:
            return _out(attn, attended)
        image, context = attended.split([hidden_states.shape[1], encoder_hidden_states.shape[1]], 1)
        return _out(attn, image), context if attn.context_pre_only else attn.to_add_out(context)


class FluxProcessor(Processor):
    """FluxAttnProcessor: context and image attend to both, the context first, positions by rotation."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if self.off:
            return self.plain(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        streams = [_projected(attn, _OWN, hidden_states)]
        if encoder_hidden_states is not None:
            streams.insert(0, _projected(attn, _ADDED, encoder_hidden_states))
        q, k, v = (torch.cat(parts, 1) for parts in zip(*streams, strict=True))
        if image_rotary_emb is not None:
            q, k = (cast(Tensor, apply_rotary_emb(each, image_rotary_emb, sequence_dim=1)) for each in (q, k))  # type: ignore
        attended = self.attend(q, k, v)
        if encoder_hidden_states is None:
            return attended  # its block has one layer for this and its feed-forward part
        context, image = attended.split([encoder_hidden_states.shape[1], hidden_states.shape[1]], 1)
        return _out(attn, image), attn.to_add_out(context)


_STANDS_FOR: dict[type, type[Processor]] = {
    AttnProcessor: AttentionProcessor,
    AttnProcessor2_0: AttentionProcessor,
    JointAttnProcessor2_0: JointProcessor,
    FluxAttnProcessor: FluxProcessor,
}
_OTHER_MEMORY = (SlicedAttnProcessor, XFormersAttnProcessor)  # the same numbers, up to the rounding of sums


def quantize_products(name: str, attention: Any, switches: Switches) -> Processor:
    """Have diffusers' attention module ``name`` compute its products on grids; returns what does.

    Raises ValueError for one that computes something else than is known here.
    """
    found = attention.processor
    plain = found.plain if isinstance(found, Processor) else found
    plain = AttnProcessor2_0() if isinstance(plain, _OTHER_MEMORY) else plain
    kind = _STANDS_FOR.get(type(plain))
    if kind is None:
        raise ValueError(
            f"{name}: its attention is computed by {type(plain).__name__}; expected one of "
            f"{', '.join(each.__name__ for each in _STANDS_FOR)}: unload adapters, undo fused projections, or call "
            "set_attn_processor with one of these"
        )
    processor = kind(switches, plain)
    attention.set_processor(processor)
    return processor


def set_heads(attention: Attention, heads: int) -> None:
    """Split the channels of an attention into ``heads``, whatever its network's config says."""
    attention.heads = attention.sliceable_head_dim = heads
    attention.scale = (attention.inner_dim // heads) ** -0.5 if attention.scale_qk else 1.0


def _projected(attn: Any, layers: tuple[tuple[str, str], ...], x: Tensor) -> list[Tensor]:
    """Queries, keys and values of tokens (N, tokens, channels), each (N, tokens, heads, d)."""
    return [_normalized(attn, norm, getattr(attn, layer)(x).unflatten(-1, (attn.heads, -1))) for layer, norm in layers]


def _normalized(attn: Any, norm: str, x: Tensor) -> Tensor:
    module: nn.Module | None = getattr(attn, norm, None) if norm else None
    return x if module is None else module(x)


def _out(attn: Any, x: Tensor) -> Tensor:
    return attn.to_out[1](attn.to_out[0](x))
