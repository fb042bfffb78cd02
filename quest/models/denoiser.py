"""The denoiser: a network that predicts noise, with its own noise schedule and DDIM sampler.

Networks and schedules are diffusers'. What is added here is that a sampling *step index* (0 is the noisiest) travels
with every prediction, because a quantized network keeps activation scales for groups of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from quest.artifacts import ArtifactError, Manifest, load_tensors, save_tensors
from quest.config import SamplerSettings
from quest.models.correction import Correction, Update
from quest.noise import SampleNoise

_ARCHITECTURES = {"UNet2DModel": UNet2DModel}


@dataclass
class Denoiser:
    """A full-precision pixel-space model.

    network: noise predictor, called as network(x (N, C, H, W), timestep (N,)).sample, in eval mode.
    scheduler: diffusers' DDIM scheduler on the model's training schedule.
    shape: (C, H, W) of one sample, values in [-1, 1].
    sha256: of the model artifact, recorded by everything made from it.
    """

    network: nn.Module
    scheduler: DDIMScheduler
    shape: tuple[int, int, int]
    sha256: str

    def sampler(self, settings: SamplerSettings) -> Sampler:
        """The sampler on this model's schedule."""
        scheduler: Any = DDIMScheduler.from_config(self.scheduler.config)
        return Sampler(scheduler, settings)


class Sampler:
    """DDIM with ``settings.steps`` steps; ``timesteps`` (steps,) int64, noisiest first."""

    def __init__(self, scheduler: DDIMScheduler, settings: SamplerSettings):
        scheduler.set_timesteps(settings.steps)
        self.timesteps: Tensor = scheduler.timesteps
        self._scheduler = scheduler
        self._eta = settings.eta

    def trajectory(
        self,
        predict: Callable[[Tensor, int], Tensor],
        noise: SampleNoise,
        device: torch.device,
        correction: Correction | None = None,
    ) -> Iterator[Tensor]:
        """Yield the states x before each step, noisiest first, and last the finished sample: steps + 1 tensors.

        predict: (x (N, C, H, W), step index) to predicted noise of the same shape. correction: for the noise that a
        quantized network adds to it.
        """
        x = noise.draw(device)
        for index, timestep in enumerate(self.timesteps.tolist()):
            yield x
            fresh = noise.draw(device) if self._eta > 0 else None
            noise_in_x, eta = predict(x, index), self._eta
            if correction is not None:
                noise_in_x = correction.noise(noise_in_x, index)
                eta, fresh = correction.randomness(index, self.update(index), eta, fresh)
            step: Any = self._scheduler.step(noise_in_x, timestep, x, eta=eta, variance_noise=fresh)
            x = step.prev_sample
        yield x

    def update(self, index: int) -> Update:
        """What step ``index`` multiplies the predicted noise and its fresh noise by (Song et al. 2021, eq. 12, 16)."""
        scheduler: Any = self._scheduler
        timestep = int(self.timesteps[index])
        before = timestep - scheduler.config.num_train_timesteps // len(self.timesteps)
        a = float(scheduler.alphas_cumprod[timestep])
        a_before = float(scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod)
        deviation = self._eta * math.sqrt((1 - a_before) / (1 - a) * (1 - a / a_before))
        return Update(math.sqrt(1 - a_before - deviation**2) - math.sqrt(a_before * (1 - a) / a), deviation)

    def noise_to_signal(self, index: int) -> float:
        """(1 - ᾱ) / ᾱ of what the network is given at step ``index``."""
        scheduler: Any = self._scheduler
        a = float(scheduler.alphas_cumprod[int(self.timesteps[index])])
        return (1 - a) / a


def predictor(network: nn.Module, timesteps: Tensor) -> Callable[[Tensor, int], Tensor]:
    """``network`` as a function of (x, step index); tells a quantized network its step first."""
    set_step = getattr(network, "set_step", None)

    def predict(x: Tensor, index: int) -> Tensor:
        if set_step is not None:
            set_step(index)
        return network(x, timesteps[index].to(x.device).expand(len(x))).sample

    return predict


def save(path: Path, network: UNet2DModel, scheduler: DDIMScheduler, manifest: Manifest) -> Manifest:
    """Write a model artifact, weights in half precision; the architecture goes into the manifest's notes."""
    notes = manifest.notes | {
        "architecture": type(network).__name__,
        "config": _plain(network.config),
        "scheduler": _plain(scheduler.config),
    }
    tensors = {name: tensor.half() for name, tensor in network.state_dict().items()}
    return save_tensors(
        path, tensors, Manifest(kind="model", settings=manifest.settings, seeds=manifest.seeds, notes=notes)
    )


def load(path: Path, device: torch.device | str = "cpu") -> Denoiser:
    """Read a model artifact into a float32 network in eval mode. Raises ArtifactError when it does not fit."""
    artifact = load_tensors(path, "model")
    notes = artifact.manifest.notes
    if notes["architecture"] not in _ARCHITECTURES:
        raise ArtifactError(f"{path}: architecture {notes['architecture']!r}; known are {', '.join(_ARCHITECTURES)}")
    network: Any = _ARCHITECTURES[notes["architecture"]].from_config(notes["config"])
    try:
        network.load_state_dict({name: tensor.float() for name, tensor in artifact.tensors.items()})
    except RuntimeError as error:
        raise ArtifactError(f"{path}: weights do not fit its own architecture: {error}") from error
    network.eval().requires_grad_(False).to(device)
    scheduler: Any = DDIMScheduler.from_config(notes["scheduler"])
    return Denoiser(network, scheduler, _shape(network), artifact.manifest.sha256)


def _shape(network: Any) -> tuple[int, int, int]:
    return network.config.in_channels, network.config.sample_size, network.config.sample_size


def _plain(config: Any) -> dict[str, Any]:
    """A diffusers config as plain JSON, without the library's private keys."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in config.items()
        if not key.startswith("_")
    }
