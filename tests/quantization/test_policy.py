"""Policies: which layers get which bits, and that the rest of the network stays as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel

from quest.config.quantizer import QuantizerSettings
from quest.config.values import Bits
from quest.quantization import storage
from quest.quantization.layers import QuantizedLayer
from quest.quantization.network import QuantizedNetwork
from quest.quantization.policy import COMMON, EIGHT, EVERYTHING, FULL, NAMED, Policy
from quest.quantization.recipe import Recipe
from quest.quantization.roles import Role

EXAMPLE = (torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.long))
POLICY = Policy(
    "test", (("conv_in", EIGHT), (Role.LAST, FULL), ("mid_block.*", Bits(8, 32)), ("mid_block.*", Bits(2, 2))), False
)


def make(unet: UNet2DModel, policy: Policy) -> QuantizedNetwork:
    return QuantizedNetwork(unet, Recipe(Bits(4, 4), QuantizerSettings(weight_search="max"), 1, 1, policy), EXAMPLE)


def test_first_match_wins() -> None:
    assert POLICY.bits("conv_in", Role.FIRST, Bits(4, 4)) == EIGHT
    assert POLICY.bits("conv_out", Role.LAST, Bits(4, 4)) == FULL
    assert POLICY.bits("mid_block.resnets.0.conv1", Role.CONVOLUTION, Bits(4, 4)) == Bits(8, 32)
    assert POLICY.bits("up_blocks.0.resnets.0.conv1", Role.CONVOLUTION, Bits(4, 4)) == Bits(4, 4)
    assert EVERYTHING.bits("conv_in", Role.FIRST, Bits(4, 4)) == Bits(4, 4)
    assert COMMON.bits("conv_in", Role.FIRST, Bits(4, 4)) == COMMON.bits("conv_out", Role.LAST, Bits(4, 4)) == EIGHT
    assert COMMON.bits("mid_block.resnets.0.conv1", Role.CONVOLUTION, Bits(4, 4)) == Bits(4, 4)


@pytest.mark.parametrize("policy", [*NAMED.values(), POLICY])
def test_as_json(policy: Policy) -> None:
    assert Policy.from_plain(policy.plain()) == policy


def test_network_follows_the_policy(make_unet: Callable[..., UNet2DModel]) -> None:
    network = make(make_unet(), POLICY)
    layers, sites = network.layers(), network.sites()
    assert layers["conv_in"].weight_parts()[0][0].grid.bits == 8
    assert sites["conv_in.input_quantizer"].grid.bits == 8
    assert not isinstance(network.network.get_submodule("conv_out"), QuantizedLayer)
    middle = [name for name in layers if name.startswith("mid_block.")]
    assert middle
    assert all(layers[name].weight_parts()[0][0].grid.bits == 8 for name in middle)
    assert not any(name.startswith("mid_block.") or ".processor." in name for name in sites)
    account = network.account()
    assert account["full_precision_layers"] == 1
    assert account["policy"] == "test"
    assert 4 < account["mean_weight_bits"] < 8


def test_export_and_restore_under_a_policy(make_unet: Callable[..., UNet2DModel]) -> None:
    network = make(make_unet(), POLICY)
    for site in network.sites().values():
        site.calibrated.fill_(True)
    network.set_step(0)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([7, 7])
    other_unet = make_unet()
    with torch.no_grad():
        for parameter in other_unet.parameters():
            parameter.add_(0.01)
        other = make(other_unet, POLICY)
        storage.restore(other, storage.export(network))
        other.set_step(0)
        assert torch.equal(other(x, t).sample, network(x, t).sample)
    with pytest.raises(ValueError, match=r"^conv_in\.weight\.0\.codes: found"):
        storage.restore(make(make_unet(), EVERYTHING), storage.export(network))
