"""What a layer is for: methods and policies choose layers by roles, which `quest.architectures` finds."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeGuard

from torch import nn


class Role(StrEnum):
    """The families that methods choose layers by.

    time_projection: what a block makes of the timestep's embedding, adaptive norms too. condition: what embeds all else
    that a network is told, a prompt, a class, a size, the guidance scale; neither timestep nor image go through it.
    """

    TIME_MLP = "time_mlp"
    TIME_PROJECTION = "time_projection"
    CONDITION = "condition"
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


def is_layer(module: nn.Module) -> TypeGuard[nn.Conv1d | nn.Conv2d | nn.Linear]:
    """Whether a module multiplies by a weight that is quantized."""
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)
