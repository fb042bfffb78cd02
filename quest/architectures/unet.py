"""diffusers' U-Nets: UNet2DModel, unconditional, and UNet2DConditionModel, with a context for cross-attention."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from quest.architectures import Architecture, Places, Temporal, register
from quest.architectures.attention import AttentionProcessor, set_heads
from quest.quantization.layers import Switches
from quest.quantization.roles import Role

# Path of a layer inside the block that gives it its role.
_IN_BLOCK: dict[type[nn.Module], dict[str, Role]] = {
    TimestepEmbedding: {"linear_1": Role.TIME_MLP, "linear_2": Role.TIME_MLP, "cond_proj": Role.TIME_MLP},
    ResnetBlock2D: {
        "conv1": Role.CONVOLUTION,
        "conv2": Role.CONVOLUTION,
        "time_emb_proj": Role.TIME_PROJECTION,
        "conv_shortcut": Role.SHORTCUT,
    },
    Attention: {
        "to_q": Role.ATTENTION_Q,
        "to_k": Role.ATTENTION_K,
        "to_v": Role.ATTENTION_V,
        "to_out.0": Role.ATTENTION_OUT,
    },
    FeedForward: {"net.0.proj": Role.FEED_FORWARD, "net.2": Role.FEED_FORWARD},
    Transformer2DModel: {"proj_in": Role.PROJECTION, "proj_out": Role.PROJECTION},
    Downsample2D: {"conv": Role.DOWNSAMPLE},
    Upsample2D: {"conv": Role.UPSAMPLE},
}
# Keys and values of the context, which depend on neither the timestep nor the image.
_CROSS_ATTENTION = {"to_k": Role.CROSS_ATTENTION_K, "to_v": Role.CROSS_ATTENTION_V}
_AT_TOP = {"conv_in": Role.FIRST, "conv_out": Role.LAST}


@register
class UNet(Architecture):
    """Residual blocks, with attention or transformer blocks between them, down to a middle and up again."""

    networks = (UNet2DModel, UNet2DConditionModel)
    blocks = (ResnetBlock2D, BasicTransformerBlock, Attention)
    token_blocks = (BasicTransformerBlock, Attention)

    @property
    def shape(self) -> tuple[int, int, int]:
        config = self.network.config
        return config.in_channels, config.sample_size, config.sample_size

    @property
    def conditional(self) -> bool:
        return isinstance(self.network, UNet2DConditionModel)

    def own_roles(self) -> dict[str, Role]:
        roles = dict(_AT_TOP)
        for name, block in self.network.named_modules():
            inside = next((parts for kind, parts in _IN_BLOCK.items() if isinstance(block, kind)), {})
            if isinstance(block, Attention) and block.is_cross_attention:
                inside = inside | _CROSS_ATTENTION
            roles |= {f"{name}.{part}": role for part, role in inside.items()}
        return roles

    def attentions(self) -> dict[str, nn.Module]:
        return {name: module for name, module in self.network.named_modules() if isinstance(module, Attention)}

    def quantize_products(self, name: str, switches: Switches) -> AttentionProcessor:
        processor = AttentionProcessor(switches)
        self._attention(name).set_processor(processor)  # type: ignore[arg-type]
        return processor

    def places(self) -> Places:
        return Places(("time_embedding.linear_1", "time_embedding.linear_2"), "down_blocks.0.resnets.0.conv1")

    def heads(self) -> dict[str, int]:
        return {name: self._attention(name).heads for name in self.attentions()}

    def set_heads(self, name: str, heads: int) -> None:
        set_heads(self._attention(name), heads)

    def _attention(self, name: str) -> Attention:
        attention = self.network.get_submodule(name)
        assert isinstance(attention, Attention)
        return attention

    def split_at(self, layer: str) -> int | None:
        """A decoder block is given what the block before it computes, and beside that an encoder's output."""
        up_block, _, place = layer.removesuffix(".conv_shortcut").rpartition(".resnets.")
        if not up_block.startswith("up_blocks."):
            return None
        if int(place) > 0:
            before = self.network.get_submodule(f"{up_block}.resnets.{int(place) - 1}")
        else:
            number = int(up_block.removeprefix("up_blocks."))
            source = f"up_blocks.{number - 1}" if number else "mid_block"
            before = self.network.get_submodule(source).resnets[-1]
        assert isinstance(before, ResnetBlock2D)
        return before.out_channels

    def temporal(self) -> Temporal:
        block = TemporalBlock(self.network)
        return Temporal(block, block.time_embedding, tuple(block.names))


class TemporalBlock(nn.Module):
    """The time embedding h and its projections g_i into every residual block, as one module on the network's layers.

    names: those of its layers in the network. Raises ValueError for a network that adds more than the timestep to its
    time embedding: its temporal features would be no finite set.
    """

    def __init__(self, network: Any):
        super().__init__()
        if any(getattr(network, part, None) is not None for part in ("class_embedding", "add_embedding")):
            raise ValueError(
                f"the time embedding of this {type(network).__name__} depends on a class or another condition as well; "
                "temporal features that are reconstructed on their own must depend on the timestep alone"
            )
        self.time_embedding = network.time_embedding
        blocks = {
            name: module
            for name, module in network.named_modules()
            if isinstance(module, ResnetBlock2D) and module.time_emb_proj is not None
        }
        self.names = [f"time_embedding.{name}" for name, _ in self.time_embedding.named_modules() if name]
        self.names += [f"{name}.time_emb_proj" for name in blocks]
        self._blocks = list(blocks.values())  # whose other layers are no part of this one

    def forward(self, *args: Any, **named: Any) -> Tensor:
        """(n, Σ channels): the features that go into each residual block, one after another.

        The arguments are those of diffusers' TimestepEmbedding: the sinusoidal embedding (n, channels).
        """
        embedding = self.time_embedding(*args, **named)
        return torch.cat([self._projected(block, embedding) for block in self._blocks], dim=1)

    @staticmethod
    def _projected(block: Any, embedding: Tensor) -> Tensor:
        return block.time_emb_proj(embedding if block.skip_time_act else block.nonlinearity(embedding))
