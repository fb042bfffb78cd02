"""The first stage of a latent model: an autoencoder between images and the latents that the denoiser works on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from torch import Tensor, nn

from quest.config.reading import unknown
from quest.diffusion.finite import finite

_KINDS: dict[str, Any] = {"AutoencoderKL": AutoencoderKL, "VQModel": VQModel}


def build(name: str, config: Mapping[str, Any]) -> Any:
    """An untrained autoencoder from the name of its class and its diffusers config. Raises ValueError."""
    if name not in _KINDS:
        raise ValueError(f"first stage: {unknown(name, _KINDS)}")
    return _KINDS[name].from_config(config)


@dataclass
class FirstStage:
    """network: diffusers' AutoencoderKL or VQModel. scale_factor: what the denoiser's latents are multiplied by.

    Latents are normalized as diffusers' pipelines do: by the network's ``latents_mean`` and ``latents_std``, or less
    its ``shift_factor``, where its configuration has them.
    """

    network: nn.Module
    scale_factor: float = 1.0

    def decode(self, z: Tensor) -> Tensor:
        """Latents as the sampler leaves them, (N, C, h, w), to images (N, channels, H, W) around [-1, 1].

        A VQ model moves them to its codebook first (Rombach et al. 2022, section 3.2). Raises ValueError for images
        that are not finite.
        """
        network: Any = self.network
        mean, deviation = self._normalization(z)
        return finite(network.decode(z * deviation / self.scale_factor + mean).sample, "images of the first stage")

    def encode(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] to latents for the denoiser: the mean of a KL model, a VQ model's before its codebook."""
        network: Any = self.network
        encoded = network.encode(images)
        latents = encoded.latent_dist.mean if isinstance(network, AutoencoderKL) else encoded.latents
        mean, deviation = self._normalization(latents)
        return (latents - mean) * self.scale_factor / deviation

    def _normalization(self, z: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Mean and deviation, (C, 1, 1) or of all channels, that the latents have beside the scale factor."""
        config: Any = self.network.config
        mean, deviation = config.get("latents_mean"), config.get("latents_std")
        if mean is None or deviation is None:
            return config.get("shift_factor") or 0.0, 1.0
        return z.new_tensor(mean).view(-1, 1, 1), z.new_tensor(deviation).view(-1, 1, 1)
