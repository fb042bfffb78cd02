"""The normalization of latents, as diffusers' pipelines have it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from quest.diffusion.first_stage import FirstStage

MEAN, STD = [1.0, -1.0, 0.5, 2.0], [2.0, 3.0, 1.0, 4.0]


@pytest.mark.parametrize(
    ("config", "mean", "deviation"),
    [
        ({}, [0.0], [1.0]),
        ({"shift_factor": 0.6}, [0.6], [1.0]),
        ({"latents_mean": MEAN, "latents_std": STD}, MEAN, STD),
    ],
)
@torch.no_grad()
def test_latents_are_normalized(config: dict[str, Any], mean: list[float], deviation: list[float]) -> None:
    torch.manual_seed(0)
    network: Any = AutoencoderKL(block_out_channels=(32,), latent_channels=4, **config).eval()
    stage = FirstStage(network, 0.5)
    z, images = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 8, 8)
    m, s = (torch.tensor(each).view(1, -1, 1, 1) for each in (mean, deviation))
    torch.testing.assert_close(stage.decode(z), network.decode(z * s / 0.5 + m).sample)
    torch.testing.assert_close(stage.encode(images), (network.encode(images).latent_dist.mean - m) * 0.5 / s)
