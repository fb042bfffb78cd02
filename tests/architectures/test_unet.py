"""What is known of diffusers' two U-Nets: roles of every layer, splits, places, and how they are called."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from quest import architectures
from quest.architectures import Inputs
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
    assert set(found.values()) == set(Role) - {Role.FEED_FORWARD, Role.PROJECTION, Role.CONDITION} - cross


def test_every_layer_of_a_conditional_unet(conditional: UNet2DConditionModel) -> None:
    found = architectures.of(conditional).roles()
    assert list(found) == names_of_layers(conditional)
    assert found == {name: expected(name) for name in found}
    assert set(found.values()) == set(Role) - {Role.CONDITION}
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


def test_shortcuts_of_the_decoder_are_split_where_the_block_before_ends(make_unet: Callable[..., UNet2DModel]) -> None:
    """Blocks of 16, 16 and 8, 8 channels; beside what the block before computes comes what the encoder kept."""
    known = architectures.of(make_unet())
    expected = {
        "up_blocks.0.resnets.0.conv_shortcut": 16,  # of the middle
        "up_blocks.0.resnets.1.conv_shortcut": 16,
        "up_blocks.1.resnets.0.conv_shortcut": 16,
        "up_blocks.1.resnets.1.conv_shortcut": 8,
    }
    assert {name: known.split_at(name) for name in expected} == expected
    assert known.split_at("down_blocks.1.resnets.0.conv_shortcut") is None


def test_places_are_layers(make_unet: Callable[..., UNet2DModel], conditional: UNet2DConditionModel) -> None:
    for network in (make_unet(), conditional):
        known = architectures.of(network)
        roles, places = known.roles(), known.places()
        assert [roles[name] for name in places.time_mlp] == [Role.TIME_MLP] * 2
        assert roles[places.first_block] is Role.CONVOLUTION
        assert list(roles).index(places.first_block) == min(list(roles).index(n) for n in roles if ".conv1" in n)


def test_arguments_have_a_context_where_there_is_one(conditional: UNet2DConditionModel) -> None:
    known = architectures.of(conditional)
    assert known.conditional
    x, timesteps, context = torch.zeros(2, 4, 8, 8), torch.zeros(2), torch.zeros(2, 5, 12)
    assert known.arguments(Inputs(x, timesteps, context)) == (x, timesteps, context)
    assert known.arguments(Inputs(x, timesteps)) == (x, timesteps)
    assert [each.shape for each in known.example(context[:1])] == [(1, 4, 8, 8), (1,), (1, 5, 12)]
