"""The bit account against counts by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from quest import architectures
from quest.architectures import Architecture, Places, register
from quest.config.quantizer import QuantizerSettings
from quest.config.values import Bits
from quest.quantization.account import account, assert_levels
from quest.quantization.attention import QuantizedAttention
from quest.quantization.grid import Grid
from quest.quantization.layers import Switches
from quest.quantization.network import QuantizedNetwork
from quest.quantization.recipe import Recipe
from quest.quantization.roles import Role
from quest.quantization.rounding import Nearest

EXAMPLE = (torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.long))
MIB = 8 * 2**20  # bits


class TwoLayers(nn.Module):
    """A convolution to half the resolution and a linear layer, 2·3·9 = 54 and 3·5 = 15 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(2, 3, 3, stride=2, padding=1)
        self.linear = nn.Linear(3, 5, bias=False)
        self.norm = nn.LayerNorm(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(self.conv_in(x).mean((2, 3))))


class OfTwoLayers(Architecture):
    """What a quantized network must be told."""

    networks, blocks, token_blocks = (TwoLayers,), (), ()

    @property
    def shape(self) -> tuple[int, int, int]:
        return 2, 8, 8

    @property
    def conditional(self) -> bool:
        return False

    def own_roles(self) -> dict[str, Role]:
        return {"conv_in": Role.FIRST, "linear": Role.FEED_FORWARD}

    def attentions(self) -> dict[str, nn.Module]:
        return {}

    def quantize_products(self, name: str, switches: Switches) -> QuantizedAttention:
        raise AssertionError("there is none")

    def places(self) -> Places:
        return Places((), "conv_in")


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    """For these tests alone: what others say is known would have it too."""
    register(OfTwoLayers)
    yield
    del architectures._REGISTERED[TwoLayers.__name__]


IMAGE = (torch.zeros(1, 2, 8, 8),)
CONV_MACS, LINEAR_MACS = 16 * 54, 15


def test_by_hand() -> None:
    settings = QuantizerSettings(edge_activation_bits=8, activation_granularity={"8": "per_tensor", "4": "per_channel"})
    recipe = Recipe(Bits(4, 4), settings, 5, 20)
    network = QuantizedNetwork(TwoLayers(), recipe, IMAGE)
    found = network.account()
    parameters = 54 + 3 + 15 + 10
    # Scales and zero points: one a weight channel; of activations, 5 sets of 1 (8 bits) and of 3 (4 bits).
    state = 2 * (3 + 5) + 2 * 5 * (1 + 3)
    assert found["parameters"] == parameters
    assert found["weights_quantized"] == 69
    assert (found["layers"], found["full_precision_layers"]) == (2, 0)
    assert found["full_precision_mib"] == pytest.approx(parameters * 32 / MIB)
    assert found["weight_mib"] == pytest.approx((69 * 4 + (3 + 10) * 32 + state * 32) / MIB)
    assert found["mean_weight_bits"] == 4
    assert found["gbops"] == pytest.approx((CONV_MACS * 4 * 8 + LINEAR_MACS * 4 * 4) / 1e9)
    assert found["mean_activation_bits"] == pytest.approx((CONV_MACS * 8 + LINEAR_MACS * 4) / (CONV_MACS + LINEAR_MACS))


def test_multiples_count_as_a_byte_each() -> None:
    settings = QuantizerSettings(edge_activation_bits=8, activation_granularity={"8": "per_tensor", "4": "multiples"})
    found = QuantizedNetwork(TwoLayers(), Recipe(Bits(4, 4), settings, 5, 20), IMAGE).account()
    # Beside the scale and zero point of each weight channel and of the input of 8 bits: of 5 sets each a scale, 3 zero
    # points and 3 multiples.
    state = (2 * (3 + 5) + 2 * 5 + 5 * (1 + 3)) * 32 + 5 * 3 * 8
    assert found["weight_mib"] == pytest.approx((69 * 4 + 13 * 32 + state) / MIB)
    assert found["activation_granularity"] == "multiples"
    assert found["gbops"] == pytest.approx((CONV_MACS * 4 * 8 + LINEAR_MACS * 4 * 4) / 1e9)


def test_symmetric_grids_store_no_zero_points() -> None:
    recipe = Recipe(Bits(4, 8), QuantizerSettings(activation_symmetric=True), 5, 20)
    found = QuantizedNetwork(TwoLayers(), recipe, IMAGE).account()
    assert found["weight_mib"] == pytest.approx((69 * 4 + 13 * 32 + (2 * 8 + 5 * 2) * 32) / MIB)


def test_each_group_of_weights_stores_a_scale_and_a_zero_point() -> None:
    # Of the first convolution none would be grouped.
    settings = QuantizerSettings(activation_symmetric=True, weight_group=3, roles={"conv_in": "convolution"})
    network = QuantizedNetwork(TwoLayers(), Recipe(Bits(4, 8), settings, 5, 20), IMAGE)
    groups = 54 // 3 + 15 // 3
    assert network.account()["weight_mib"] == pytest.approx((69 * 4 + 13 * 32 + (2 * groups + 5 * 2) * 32) / MIB)


def test_full_precision(make_unet: Callable[..., UNet2DModel]) -> None:
    network = make_unet()
    found = account(network, EXAMPLE)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert found["mean_weight_bits"] == found["mean_activation_bits"] == 32
    assert found["layers"] == found["weights_quantized"] == 0
    assert found["weight_mib"] == found["full_precision_mib"] == pytest.approx(parameters * 32 / MIB)
    assert found["parameters"] == parameters


def test_nothing_is_hidden_in_fused_kernels(make_unet: Callable[..., UNet2DModel]) -> None:
    """On a CPU attention is one kernel, on the meta device two products."""
    with torch.device("meta"):
        meta = UNet2DModel.from_config(make_unet().config)
    on_meta = account(meta, tuple(each.to("meta") for each in EXAMPLE))  # type: ignore[arg-type]
    assert on_meta == account(make_unet(), EXAMPLE)


def test_products_of_attention() -> None:
    """Two products of 16 tokens × 5 context tokens × 8 channels, and four layers."""
    attention = Attention(8, cross_attention_dim=6, heads=2, dim_head=4, bias=False)
    found = account(attention, (torch.zeros(1, 16, 8), torch.zeros(1, 5, 6)))
    layers = 16 * 8 * 8 + 2 * 5 * 6 * 8 + 16 * 8 * 8
    assert found["gbops"] == pytest.approx((layers + 2 * 16 * 5 * 8) * 32 * 32 / 1e9)


def test_quantized_unet_against_full_precision(make_unet: Callable[..., UNet2DModel]) -> None:
    full = account(make_unet(), EXAMPLE)
    settings = QuantizerSettings(softmax_bits=8, edge_activation_bits=8, activation_granularity={"8": "per_tensor"})
    found = QuantizedNetwork(make_unet(), Recipe(Bits(8, 8), settings, 1, 1), EXAMPLE).account()
    assert found["gbops"] == pytest.approx(full["gbops"] / 16), "every product is 8 by 8 bits, attention's too"
    assert found["mean_activation_bits"] == found["mean_weight_bits"] == 8
    assert found["parameters"] == full["parameters"]
    assert found["layers"] == full["full_precision_layers"]
    assert found["full_precision_mib"] == full["full_precision_mib"]


def four_bits(make_unet: Callable[..., UNet2DModel]) -> QuantizedNetwork:
    return QuantizedNetwork(make_unet(), Recipe(Bits(4, 8), QuantizerSettings(), 1, 1), EXAMPLE)


def test_weight_with_codes_outside_its_bits_is_found(make_unet: Callable[..., UNet2DModel]) -> None:
    network = four_bits(make_unet)
    quantizer, _ = network.layers()["conv_in"].weight_parts()[0]
    quantizer.codes = lambda weight: torch.full(weight.shape, 16)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"conv_in\.weight\[0\]: codes from 16 to 16, but 4 bits hold 0 to 15"):
        network.account()


def test_weight_between_its_levels_is_found(make_unet: Callable[..., UNet2DModel]) -> None:
    """A weight that was not rounded: the codes that would be stored are right, what is multiplied is not."""
    network = four_bits(make_unet)
    quantizer, _ = network.layers()["mid_block.resnets.0.conv1"].weight_parts()[0]
    quantizer.rounding = nn.Identity()
    message = (
        r"mid_block\.resnets\.0\.conv1\.weight\[0\]: found \d+ distinct values of one scale, expected at most the 16"
    )
    with pytest.raises(ValueError, match=message):
        network.account()
    quantizer.rounding = Nearest()
    assert network.account()["mean_weight_bits"] == 4


def test_activation_with_more_levels_than_its_bits_is_found(make_unet: Callable[..., UNet2DModel]) -> None:
    network = QuantizedNetwork(make_unet(), Recipe(Bits(4, 4), QuantizerSettings(), 1, 1), EXAMPLE)
    network.example = torch.randn(1, 1, 8, 8), EXAMPLE[1]
    assert network.account()["activation_levels"] == 16
    name = "down_blocks.0.resnets.0.conv1.input_quantizer"
    site = network.sites()[name]
    site.forward = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=rf"activation {name}: found \d+ distinct values .* 16 of a grid of 4 bits"):
        network.account()
    assert not any(module._forward_hooks for module in network.modules())


def test_levels_are_counted_for_each_scale() -> None:
    assert_levels(torch.arange(8.0).view(2, 4), Grid(2), "x")
    with pytest.raises(ValueError, match=r"x: found 5 distinct values of one scale, expected at most the 4 .* 2 bits"):
        assert_levels(torch.tensor([[0.0, 0, 0, 0, 0], [1, 2, 3, 4, 5]]), Grid(2), "x")


def test_levels_beyond_the_bits_are_counted(make_quantized: Callable[..., QuantizedNetwork]) -> None:
    honest = make_quantized("w4a4", activation_symmetric=True)
    legacy = make_quantized("w4a4", activation_symmetric=True, legacy_symmetric_levels=True)
    name = "down_blocks.0.resnets.0.conv1"
    x = torch.randn(4, 8, 8, 8)
    codes = []
    for network in (honest, legacy):
        network.set_step(0)
        site = network.sites()[f"{name}.input_quantizer"]
        with torch.no_grad():
            codes.append((site(x * site.scale[0] * site.grid.high / 2) / site.scale[0]).round().unique())
    assert len(codes[0]) <= 16 < len(codes[1]) <= 33
    accounts = [network.account() for network in (honest, legacy)]
    assert accounts[1]["mean_activation_bits"] > 1.1 * accounts[0]["mean_activation_bits"]
    assert accounts[1]["gbops"] > 1.1 * accounts[0]["gbops"]
    assert [account["activation_levels"] for account in accounts] == [16, 33]
