"""diffusers' U-Nets: UNet2DModel, of classes or nothing, and UNet2DConditionModel, of a context for cross-attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from quest.architectures import Inputs, Places, Temporal, register
from quest.architectures.attention import set_heads
from quest.architectures.common import OfDiffusers
from quest.quantization.roles import Role

_CLASS, _GUIDANCE = "class_labels", "timestep_cond"
"""What ``added`` may have for a UNet2DConditionModel that is not one of its added_cond_kwargs."""
_SIZES = 6  # numbers of the image's size and crop that SDXL is told


@register
class UNet(OfDiffusers):
    """Residual blocks, with attention or transformer blocks between them, down to a middle, where there is one, and up.

    The context of a UNet2DModel with classes is those, as its ``class_labels``. Of a UNet2DConditionModel it is
    (N, L, d) of a text encoder, and ``added`` has what else it is told: class_labels, timestep_cond (the guidance
    scale, embedded), and all that diffusers calls added_cond_kwargs, as SDXL's text_embeds (N, d) and time_ids (N, 6).
    """

    networks = (UNet2DModel, UNet2DConditionModel)
    blocks = (ResnetBlock2D, BasicTransformerBlock, Attention)
    token_blocks = (BasicTransformerBlock, Attention)
    own: ClassVar[Mapping[str, Role]] = {
        "conv_in": Role.FIRST,
        "conv_out": Role.LAST,
        "encoder_hid_proj": Role.CONDITION,
        "class_embedding": Role.CONDITION,
        **{f"{each}_embedding.linear_{i}": Role.CONDITION for each in ("class", "add") for i in (1, 2)},
    }

    @property
    def shape(self) -> tuple[int, int, int]:
        config = self.network.config
        size = config.sample_size
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return config.in_channels, height, width

    @property
    def conditional(self) -> bool:
        return isinstance(self.network, UNet2DConditionModel) or self.network.class_embedding is not None

    def arguments(self, inputs: Inputs) -> tuple[Any, ...]:
        if not inputs.added:
            return super().arguments(inputs)
        added = dict(inputs.added)
        classes, guidance = added.pop(_CLASS, None), added.pop(_GUIDANCE, None)
        return inputs.x, inputs.timesteps, inputs.context, classes, guidance, None, None, added or None

    def blank(self) -> Inputs:
        told, config = super().blank(), self.network.config
        if isinstance(self.network, UNet2DModel):
            return told._replace(context=self._blank_class())
        width = config.cross_attention_dim if config.encoder_hid_dim is None else config.encoder_hid_dim
        width = width[0] if isinstance(width, list | tuple) else width
        added: dict[str, Tensor] = {}
        if (label := self._blank_class()) is not None:
            added[_CLASS] = label
        if config.time_cond_proj_dim is not None:
            added[_GUIDANCE] = self.zeros(1, config.time_cond_proj_dim)
        if config.addition_embed_type == "text_time":
            text = config.projection_class_embeddings_input_dim - _SIZES * config.addition_time_embed_dim
            added |= {"text_embeds": self.zeros(1, text), "time_ids": self.zeros(1, _SIZES)}
        return told._replace(context=self.zeros(1, self.tokens, width), added=added or None)

    def _blank_class(self) -> Tensor | None:
        """What a network with a class embedding takes for one."""
        config, embedding = self.network.config, self.network.class_embedding
        if embedding is None:
            return None
        if isinstance(embedding, nn.Embedding):
            return self.zeros(1, dtype=torch.long)
        if config.class_embed_type == "timestep":
            return self.zeros(1)
        if config.class_embed_type == "identity":
            return self.zeros(1, len(self.network.time_embedding.linear_2.weight))
        return self.zeros(1, config.projection_class_embeddings_input_dim)

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
            middle = (
                "mid_block"
                if self.network.mid_block is not None
                else f"down_blocks.{len(self.network.down_blocks) - 1}"
            )
            before = self.network.get_submodule(f"up_blocks.{number - 1}" if number else middle).resnets[-1]
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
