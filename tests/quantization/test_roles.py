"""Roles of every layer of the two diffusers U-Nets, and of layers that no block explains."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from quest import architectures
from quest.quantization.roles import Role

# Every layer of both networks, by the way its name ends.
EXPECTED = {
    r"conv_in": Role.FIRST,
    r"conv_out": Role.LAST,
    r"time_embedding\.linear_[12]": Role.TIME_MLP,
    r".*\.resnets\.\d\.conv[12]": Role.CONVOLUTION,
    r".*\.resnets\.\d\.time_emb_proj": Role.TIME_PROJECTION,
    r".*\.resnets\.\d\.conv_shortcut": Role.SHORTCUT,
    r".*\.to_q": Role.ATTENTION_Q,
    r".*\.(attentions\.\d|attn1)\.to_k": Role.ATTENTION_K,
    r".*\.(attentions\.\d|attn1)\.to_v": Role.ATTENTION_V,
    r".*\.attn2\.to_k": Role.CROSS_ATTENTION_K,
    r".*\.attn2\.to_v": Role.CROSS_ATTENTION_V,
    r".*\.to_out\.0": Role.ATTENTION_OUT,
    r".*\.ff\.net\.(0\.proj|2)": Role.FEED_FORWARD,
    r".*\.attentions\.\d\.proj_(in|out)": Role.PROJECTION,
    r".*\.downsamplers\.0\.conv": Role.DOWNSAMPLE,
    r".*\.upsamplers\.0\.conv": Role.UPSAMPLE,
}


def expected(name: str) -> Role:
    (role,) = [role for pattern, role in EXPECTED.items() if re.fullmatch(pattern, name)]
    return role


@pytest.fixture(scope="module")
def conditional() -> UNet2DConditionModel:
    """A tiny text-to-image U-Net: Transformer2DModel with self- and cross-attention and a GEGLU feed-forward."""
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=2,
            cross_attention_dim=12,
            norm_num_groups=4,
        )


def names_of_layers(network: nn.Module) -> list[str]:
    return [n for n, m in network.named_modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Linear)]


def test_every_layer_of_a_pixel_space_unet(make_unet: Callable[..., UNet2DModel]) -> None:
    network = make_unet()
    found = architectures.of(network).roles()
    assert list(found) == names_of_layers(network)
    assert found == {name: expected(name) for name in found}
    cross = {Role.CROSS_ATTENTION_K, Role.CROSS_ATTENTION_V}
    assert set(found.values()) == set(Role) - {Role.FEED_FORWARD, Role.PROJECTION} - cross


def test_every_layer_of_a_conditional_unet(conditional: UNet2DConditionModel) -> None:
    found = architectures.of(conditional).roles()
    assert list(found) == names_of_layers(conditional)
    assert found == {name: expected(name) for name in found}
    assert set(found.values()) == set(Role)
    assert sum(role is Role.FEED_FORWARD for role in found.values()) == 2 * 4  # 1 + 1 + 2 transformer blocks


@pytest.mark.parametrize("linear", [False, True])
def test_projections_of_both_layouts(linear: bool) -> None:
    with torch.device("meta"):
        network = UNet2DConditionModel(
            block_out_channels=(8,),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            attention_head_dim=2,
            cross_attention_dim=12,
            norm_num_groups=4,
            use_linear_projection=linear,
        )
    projections = [
        network.get_submodule(n) for n, role in architectures.of(network).roles().items() if role is Role.PROJECTION
    ]
    assert len(projections) == 8
    assert all(isinstance(layer, nn.Linear if linear else nn.Conv2d) for layer in projections)


def test_unknown_layer_is_named(make_unet: Callable[..., UNet2DModel]) -> None:
    network = make_unet()
    network.get_submodule("mid_block").add_module("extra", nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"unknown role in UNet2DModel: mid_block\.extra \(Linear\); .*time_mlp"):
        architectures.of(network).roles()


def test_overrides(make_unet: Callable[..., UNet2DModel]) -> None:
    network = make_unet()
    network.get_submodule("mid_block").add_module("extra", nn.Linear(3, 3))
    found = architectures.of(network).roles({"*.extra": Role.PROJECTION, "up_blocks.*.conv1": Role.SHORTCUT})
    assert found["mid_block.extra"] is Role.PROJECTION
    assert found["up_blocks.0.resnets.0.conv1"] is Role.SHORTCUT
    assert found["down_blocks.0.resnets.0.conv1"] is Role.CONVOLUTION
