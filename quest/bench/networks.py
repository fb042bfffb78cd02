"""The U-Nets of the paper's latent models at their real size, with random weights: speed does not depend on them.

Two are LDM-4 (Rombach et al. 2022): noise of latents (N, 3, 64, 64). All are called as network(latents, timesteps
(N,)).
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

SHAPE = (3, 64, 64)
"""Of the latents of both LDM-4."""
CONTEXTS = {"imagenet": (1, 512), "stable-diffusion": (77, 768)}
"""Tokens and channels of what a network attends to beside itself."""
_COMMON: dict[str, Any] = {"sample_size": 64, "in_channels": 3, "out_channels": 3, "layers_per_block": 2}


def bedrooms() -> nn.Module:
    """LSUN-Bedrooms: 224 channels × (1, 2, 3, 4), attention with heads of 32 channels at 1/2, 1/4 and 1/8 of the size;
    274.06 M parameters."""
    return UNet2DModel(
        block_out_channels=(224, 448, 672, 896),
        down_block_types=("DownBlock2D", *["AttnDownBlock2D"] * 3),
        up_block_types=(*["AttnUpBlock2D"] * 3, "UpBlock2D"),
        attention_head_dim=32,
        **_COMMON,
    )


def imagenet() -> nn.Module:
    """ImageNet 256: 192 channels × (1, 2, 3, 5), transformer blocks at the same places; 400.92 M parameters.

    Its class embedding is a constant (`conditioned`).
    """
    return conditioned(
        UNet2DConditionModel(
            block_out_channels=(192, 384, 576, 960),
            down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * 3),
            up_block_types=(*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"),
            attention_head_dim=(6, 12, 18, 30),  # type: ignore[arg-type]  # diffusers' name for the number of heads
            cross_attention_dim=512,
            **_COMMON,
        ),
        *CONTEXTS["imagenet"],
    )


def stable_diffusion() -> nn.Module:
    """Stable Diffusion 1.x: latents of 4 channels; 859.52 M parameters. Its prompt is a constant."""
    return conditioned(
        UNet2DConditionModel(sample_size=64, attention_head_dim=8, cross_attention_dim=768),
        *CONTEXTS["stable-diffusion"],
    )


def conditioned(network: UNet2DConditionModel, tokens: int, width: int) -> nn.Module:
    """``network`` called without its context, for which it takes ones, (N, tokens, width)."""

    def condition(_module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        return args, {"encoder_hidden_states": args[0].new_ones(len(args[0]), tokens, width)} | named

    network.register_forward_pre_hook(condition, with_kwargs=True)
    return network


NETWORKS = {"imagenet": imagenet, "bedrooms": bedrooms, "stable-diffusion": stable_diffusion}


def shape(name: str) -> tuple[int, int, int]:
    """Of the latents of a network of NETWORKS."""
    return (4, 64, 64) if name == "stable-diffusion" else SHAPE


def make(name: str, device: torch.device | str) -> nn.Module:
    """A network by its name in NETWORKS, for inference."""
    with torch.device(device):
        return NETWORKS[name]().eval().requires_grad_(False)
