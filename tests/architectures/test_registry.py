"""Which architecture explains a network."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import nn

from quest import architectures
from quest.architectures import Inputs
from quest.quantization.network import QuantizedNetwork


def test_an_unknown_network_is_one_sentence_with_what_to_do() -> None:
    message = (
        r"^architecture: unknown 'Linear'; known are .*UNet2DModel, UNet2DConditionModel.*; to quantize another kind "
        r"of network, describe it in a file of quest/architectures$"
    )
    with pytest.raises(ValueError, match=message):
        architectures.of(nn.Linear(2, 2))


def test_an_unknown_name_is_told_its_neighbour() -> None:
    with pytest.raises(ValueError, match=r"unknown 'UNet2DModell' \(did you mean 'UNet2DModel'\?\)"):
        architectures.build("UNet2DModell", {})


def test_a_subclass_is_explained_by_its_base(make_unet: Callable[..., UNet2DModel]) -> None:
    class Mine(UNet2DModel):
        pass

    network = make_unet()
    network.__class__ = Mine
    assert architectures.of(network).shape == (1, 8, 8)


def test_a_class_that_only_has_the_name_is_not_explained() -> None:
    impostor = type("UNet2DModel", (nn.Module,), {})()
    with pytest.raises(ValueError, match="architecture: unknown"):
        architectures.of(impostor)


def test_a_quantized_network_is_asked_like_the_one_it_was_made_from(
    make_quantized: Callable[..., QuantizedNetwork],
) -> None:
    network = make_quantized("w8a8")
    network.set_step(0)
    told = Inputs(torch.randn(2, 1, 8, 8), torch.tensor([3, 3]))
    with torch.no_grad():
        assert torch.equal(architectures.predict(network, told), network(told.x, told.timesteps).sample)


def test_heads_are_built_again(make_unet: Callable[..., UNet2DModel]) -> None:
    """Which no config can say where levels differ."""
    network = make_unet()
    known = architectures.of(network)
    name = next(iter(known.attentions()))
    assert known.heads()[name] == 2
    known.set_heads(name, 4)
    again = architectures.build("UNet2DModel", network.config, known.heads())
    again.load_state_dict(network.state_dict())
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([5])
    with torch.no_grad():
        assert torch.equal(again.eval()(x, t).sample, network(x, t).sample)
        known.set_heads(name, 2)
        assert not torch.equal(again(x, t).sample, network(x, t).sample), "heads do something"
