"""Tiny networks in the place of the paper's: the benchmarks run through in seconds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from quest.bench import networks


@pytest.fixture
def tiny_networks(monkeypatch: pytest.MonkeyPatch, make_unet: Callable[..., UNet2DModel]) -> None:
    """The tests' 8×8 U-Net, and one with transformer blocks."""

    def conditional() -> nn.Module:
        network = UNet2DConditionModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=2,
            cross_attention_dim=6,
            norm_num_groups=4,
        )
        return networks.conditioned(network, 1, 6)

    monkeypatch.setattr(networks, "SHAPE", (1, 8, 8))
    monkeypatch.setitem(networks.NETWORKS, "bedrooms", make_unet)
    monkeypatch.setitem(networks.NETWORKS, "imagenet", conditional)
