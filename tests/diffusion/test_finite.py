"""What is not finite is refused where it arises, and never becomes a black picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from quest.config.dataset import DatasetSettings
from quest.diffusion import sampling
from quest.diffusion.denoiser import Denoiser
from quest.diffusion.finite import finite
from quest.diffusion.first_stage import FirstStage

CPU = torch.device("cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_any_of_it(value: float) -> None:
    x = torch.zeros(2, 3)
    assert finite(x, "x") is x
    x[1, 2] = value
    with pytest.raises(ValueError, match=r"^numbers of a test: 1 of 6 numbers are NaN or infinite"):
        finite(x, "numbers of a test")
    with pytest.raises(ValueError, match=r"^images: 1 of 6"):
        sampling.to_uint8(x)


def test_prediction_in_the_loop_of_the_sampler(denoiser: Denoiser, settings: DatasetSettings) -> None:
    """From the second step on: at timesteps below 600."""
    network: Any = denoiser.network
    forward = network.forward

    def breaks(x: Tensor, timestep: Tensor, *more: Any) -> Any:
        output = forward(x, timestep, *more)
        output.sample[0, 0, 0, 0] = float("nan") if int(timestep[0]) < 600 else 0.0
        return output

    network.forward = breaks
    with pytest.raises(ValueError, match=r"^prediction at sampling step 1 \(timestep 501\): 1 of 256 numbers are NaN"):
        sampling.draw(denoiser, network, settings, 0, range(4), CPU)


def test_images_of_the_first_stage(
    denoiser: Denoiser, settings: DatasetSettings, make_unet: Callable[..., Any]
) -> None:
    network: Any = AutoencoderKL(block_out_channels=(32,), latent_channels=1)
    network.decoder.conv_out.bias.data.fill_(float("nan"))
    model = Denoiser(denoiser.network, denoiser.scheduler, FirstStage(network))
    with pytest.raises(ValueError, match=r"^images of the first stage: \d+ of \d+ numbers are NaN or infinite"):
        sampling.draw(model, model.network, settings, 0, range(2), CPU)
