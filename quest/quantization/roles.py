"""What each convolution and linear layer of a diffusers U-Net is for, found from the blocks that hold it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from fnmatch import fnmatch
from typing import TypeGuard

from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import nn


class Role(StrEnum):
    """The families that methods choose layers by."""

    TIME_MLP = "time_mlp"
    TIME_PROJECTION = "time_projection"
    ATTENTION_Q = "attention_q"
    ATTENTION_K = "attention_k"
    ATTENTION_V = "attention_v"
    CROSS_ATTENTION_K = "cross_attention_k"
    CROSS_ATTENTION_V = "cross_attention_v"
    ATTENTION_OUT = "attention_out"
    FEED_FORWARD = "feed_forward"
    PROJECTION = "projection"
    CONVOLUTION = "convolution"
    SHORTCUT = "shortcut"
    DOWNSAMPLE = "downsample"
    UPSAMPLE = "upsample"
    FIRST = "first"
    LAST = "last"


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


def is_layer(module: nn.Module) -> TypeGuard[nn.Conv1d | nn.Conv2d | nn.Linear]:
    """Whether a module multiplies by a weight that is quantized."""
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)


def find(network: nn.Module, overrides: Mapping[str, Role] | None = None) -> dict[str, Role]:
    """Name to role of every convolution and linear layer of ``network``, in registration order.

    overrides: name patterns (fnmatch) to roles; they win over what the architecture says.
    Raises ValueError naming the layers whose role is unknown: none is skipped silently.
    """
    roles: dict[str, Role] = dict(_AT_TOP)
    for block_name, block in network.named_modules():
        inside = next((parts for kind, parts in _IN_BLOCK.items() if isinstance(block, kind)), {})
        if isinstance(block, Attention) and block.is_cross_attention:
            inside = inside | _CROSS_ATTENTION
        roles |= {f"{block_name}.{part}": role for part, role in inside.items()}
    found, strange = {}, []
    for name, module in network.named_modules():
        if not is_layer(module):
            continue
        role = next((role for pattern, role in (overrides or {}).items() if fnmatch(name, pattern)), roles.get(name))
        if role is None:
            strange.append(f"{name} ({type(module).__name__})")
        else:
            found[name] = Role(role)
    if strange:
        raise ValueError(
            f"layers of unknown role in {type(network).__name__}: {', '.join(strange)}; "
            f"give each a role by a name pattern, one of {', '.join(Role)}"
        )
    return found
