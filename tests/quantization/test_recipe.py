"""A recipe as JSON and back, and the roles that it gives to layers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import nn

from quest.config.dataset import DatasetSettings
from quest.config.quantizer import QuantizerSettings
from quest.config.values import Bits
from quest.deploy import checkpoints, start
from quest.deploy.checkpoints import Checkpoint
from quest.diffusion import denoiser as denoisers
from quest.learning.calibration import Calibration
from quest.learning.finetuning import calibrate_activations
from quest.quantization.network import QuantizedNetwork
from quest.quantization.policy import TIME_FULL_PRECISION
from quest.quantization.recipe import Recipe
from quest.quantization.roles import Role

ROLES = {"mid_block.*.conv?": "projection", "mid_block.resnets.0.conv?": "feed_forward"}


def test_plain_and_back() -> None:
    recipe = Recipe(Bits(4, 8), QuantizerSettings(roles=ROLES), 2, 4, TIME_FULL_PRECISION, (4,))
    assert Recipe.from_plain(json.loads(json.dumps(recipe.plain(), sort_keys=True))) == recipe


def test_an_unknown_role_names_the_key() -> None:
    message = r"quantizer\.roles: \*\.extra: unknown 'projektion' \(did you mean 'projection'\?\); known are time_mlp"
    with pytest.raises(ValueError, match=message):
        Recipe(Bits(4, 8), QuantizerSettings(roles={"*.extra": "projektion"}), 1, 1)


def test_the_longest_pattern_wins_in_any_order(make_unet: Callable[..., UNet2DModel]) -> None:
    example = torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.long)
    for given in (ROLES, dict(reversed(ROLES.items()))):
        settings = QuantizerSettings(weight_search="max", roles=given)
        layers = QuantizedNetwork(make_unet(), Recipe(Bits(4, 8), settings, 1, 1), example).layers()
        assert layers["mid_block.resnets.0.conv1"].role is Role.FEED_FORWARD
        assert layers["mid_block.resnets.1.conv2"].role is Role.PROJECTION
        assert layers["down_blocks.0.resnets.0.conv1"].role is Role.CONVOLUTION


def test_roles_of_the_configuration_are_read_from_the_checkpoint(
    make_settings: Callable[..., DatasetSettings], model_file: Path, calibration: Calibration, tmp_path: Path
) -> None:
    settings = make_settings(quantizer={"roles": ROLES})
    denoiser = denoisers.load(model_file)
    network, _ = start.network(settings, denoiser, "nearest", Bits(4, 8), None)
    assert network.layers()["mid_block.resnets.1.conv2"].role is Role.PROJECTION
    calibrate_activations(network, calibration)
    path = tmp_path / "checkpoint.safetensors"
    made = Checkpoint(network, "nearest", settings.sampler, inputs={"model": denoiser.sha256})
    checkpoints.save(path, made)
    loaded = checkpoints.load(path, denoisers.load(model_file)).network
    assert dict(loaded.recipe.roles) == ROLES
    assert {n: layer.role for n, layer in loaded.layers().items()} == {
        n: layer.role for n, layer in network.layers().items()
    }


def test_a_pattern_that_no_layer_has_is_refused(make_unet: Callable[..., UNet2DModel]) -> None:
    settings = QuantizerSettings(roles={"middle.*": "convolution"})
    example = torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match=r"quantizer\.roles: middle\.\*: no layer of UNet2DModel is called like that"):
        QuantizedNetwork(make_unet(), Recipe(Bits(4, 8), settings, 1, 1), example)


def test_a_layer_of_unknown_role_names_the_key(make_unet: Callable[..., UNet2DModel]) -> None:
    network = make_unet()
    network.get_submodule("mid_block").add_module("extra", nn.Linear(3, 3))
    example = torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match=r"mid_block\.extra \(Linear\); .* \(quantizer\.roles\)"):
        QuantizedNetwork(network, Recipe(Bits(4, 8), QuantizerSettings(), 1, 1), example)
