"""Weight bits of single layers: in the recipe and in what is made of it, whatever the policy around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from quest.config.quantizer import QuantizerSettings
from quest.config.values import Bits
from quest.diffusion.denoiser import Denoiser
from quest.methods import efficientdm
from quest.quantization import mixed
from quest.quantization.network import QuantizedNetwork
from quest.quantization.policy import COMMON
from quest.quantization.recipe import Recipe
from quest.quantization.roles import Role

BASE = Recipe(Bits(8, 6), QuantizerSettings(weight_search="max"), 2, 4, COMMON)
ROLES = {"a": Role.FEED_FORWARD, "conv_in": Role.FIRST, "b": Role.CONVOLUTION}


def test_inputs_and_exceptions_stay() -> None:
    recipe = mixed.recipe(BASE, ROLES, {"a": 3})
    assert recipe.layer_bits("a", Role.FEED_FORWARD) == Bits(3, 6)
    assert recipe.layer_bits("b", Role.CONVOLUTION) == Bits(8, 6)
    assert recipe.layer_bits("conv_in", Role.FIRST) == Bits(8, 8), "of the policy"
    assert recipe.policy.excepts("conv_in", Role.FIRST)
    assert not recipe.policy.excepts("a", Role.FEED_FORWARD), "chosen bits are no exception to a method"


def test_a_manifest_keeps_it() -> None:
    recipe = mixed.recipe(BASE, ROLES, {"a": 3, "b": 5})
    read = Recipe.from_plain(recipe.plain())
    assert read.plain() == recipe.plain()
    for name, role in ROLES.items():
        assert read.layer_bits(name, role) == recipe.layer_bits(name, role)


def test_steps_that_choose_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot have activation bits that change between steps"):
        mixed.recipe(replace(BASE, lower=(4,)), ROLES, {"a": 3})


def test_a_network_of_it(denoiser: Denoiser, make_quantized: Callable[..., QuantizedNetwork]) -> None:
    roles = {name: layer.role for name, layer in make_quantized("w4a4").layers().items()}
    chosen = {name: 2 + number % 5 for number, name in enumerate(roles) if roles[name] not in (Role.FIRST, Role.LAST)}
    network = QuantizedNetwork(denoiser.network, mixed.recipe(BASE, roles, chosen), denoiser.example())
    for name, layer in network.layers().items():
        assert layer.weight_parts()[0][0].grid.bits == chosen.get(name, 8)
        codes = layer.weight_parts()[0][0].codes(layer.weight_parts()[0][1])
        assert codes.unique().numel() <= 2 ** chosen.get(name, 8)
    weights = {name: layer.weight.numel() for name, layer in network.layers().items()}
    mean = sum(weights[name] * chosen.get(name, 8) for name in weights) / sum(weights.values())
    assert mixed.label(network) == f"w{mean:.2f}a6"
    assert list(efficientdm.trained_layers(network)) == list(chosen), "each of them is trained"
    assert mixed.label(make_quantized("w4a4")) == "w4a4"
