"""Samplers: DDIM with any η on any grid of timesteps, and PLMS, on a model's own noise schedule (diffusers')."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from torch import Tensor

from quest.config.sampling import SamplerSettings
from quest.diffusion.correction import Correction, Update
from quest.noise import SampleNoise


class Call(NamedTuple):
    """One call of the network while sampling. step: index of the sampling step, 0 is the noisiest; it chooses the
    activation scales of a quantized network. timestep: what the network is told."""

    step: int
    timestep: int


Predict = Callable[[Tensor, Call], Tensor]
"""x (N, C, H, W) and the call to the predicted noise, of the shape of x."""


class Sampler:
    """Goes from noise to samples in ``settings.steps`` steps. timesteps: (steps,) int64, noisiest first.

    Raises ValueError for a model that predicts something else than noise, or a grid that does not fit its schedule.
    """

    def __init__(self, schedule: DDIMScheduler, settings: SamplerSettings):
        config: Any = schedule.config
        if config.prediction_type != "epsilon":
            raise ValueError(
                f"the model predicts {config.prediction_type!r}; expected one that predicts noise, 'epsilon'"
            )
        self.timesteps = _grid(schedule, settings)
        alphas = schedule.alphas_cumprod[self.timesteps].double()
        self._alphas = alphas.tolist()
        self._alphas_after = [*self._alphas[1:], float(schedule.final_alpha_cumprod)]
        self._clip = config.clip_sample_range if config.clip_sample else None
        self._schedule, self._settings = schedule, settings

    @property
    def steps(self) -> int:
        """Number of sampling steps."""
        return len(self.timesteps)

    @property
    def guidance_scale(self) -> float:
        """Of classifier-free guidance; 1 is without."""
        return self._settings.guidance_scale

    def calls(self) -> list[Call]:
        """All calls of the network, in order. PLMS calls it twice in its first step (Liu et al. 2022, eq. 12)."""
        calls = [Call(step, timestep) for step, timestep in enumerate(self.timesteps.tolist())]
        if self._settings.kind == "plms":
            calls.insert(1, Call(0, calls[min(1, len(calls) - 1)].timestep))
        return calls

    def trajectory(
        self, predict: Predict, noise: SampleNoise, device: torch.device, correction: Correction | None = None
    ) -> Iterator[Tensor]:
        """Yield the states x before each step, noisiest first, and last the finished sample: steps + 1 tensors.

        correction: for the noise that a quantized network adds to its prediction.
        """

        def corrected(x: Tensor, call: Call) -> Tensor:
            predicted = predict(x, call)
            return predicted if correction is None else correction.noise(predicted, call.step)

        x = noise.draw(device)
        walk = (
            self._plms(corrected, x) if self._settings.kind == "plms" else self._ddim(corrected, x, noise, correction)
        )
        yield x
        yield from walk

    def update(self, step: int) -> Update:
        """What DDIM multiplies the predicted noise and its fresh noise by (Song et al. 2021, eq. 12, 16)."""
        return self._update(step, self._settings.eta)

    def noise_to_signal(self, step: int) -> float:
        """(1 - ᾱ) / ᾱ of what the network is given at ``step``."""
        return (1 - self._alphas[step]) / self._alphas[step]

    def _update(self, step: int, eta: float) -> Update:
        a, after = self._alphas[step], self._alphas_after[step]
        deviation = eta * math.sqrt((1 - after) / (1 - a) * (1 - a / after))
        return Update(math.sqrt(max(0.0, 1 - after - deviation**2)) - math.sqrt(after * (1 - a) / a), deviation)

    def _ddim(self, predict: Predict, x: Tensor, noise: SampleNoise, correction: Correction | None) -> Iterator[Tensor]:
        for call in self.calls():
            a, after = self._alphas[call.step], self._alphas_after[call.step]
            eta = self._settings.eta
            fresh = noise.draw(x.device) if eta > 0 else None
            predicted = predict(x, call)
            if correction is not None:
                eta, fresh = correction.randomness(call.step, self.update(call.step), eta, fresh)
            clean = (x - math.sqrt(1 - a) * predicted) / math.sqrt(a)
            if self._clip is not None:
                clean = clean.clamp(-self._clip, self._clip)
            deviation = self._update(call.step, eta).deviation
            x = math.sqrt(after) * clean + math.sqrt(max(0.0, 1 - after - deviation**2)) * predicted
            if fresh is not None:
                x = x + deviation * fresh
            yield x

    def _plms(self, predict: Predict, x: Tensor) -> Iterator[Tensor]:
        plms: Any = PNDMScheduler.from_config(self._schedule.config, skip_prk_steps=True)
        plms.set_timesteps(self.steps)
        calls = self.calls()
        for call, following in zip(calls, [*calls[1:], None], strict=True):
            x = plms.step(predict(x, call), call.timestep, x).prev_sample
            if following is None or following.step != call.step:  # what is between the calls of one step is no state
                yield x


def _grid(schedule: DDIMScheduler, settings: SamplerSettings) -> Tensor:
    """The timesteps of a sampler, noisiest first, (steps,) int64.

    "uniform" has the model's own offset; "quadratic" is the grid of DDIM's CIFAR-10 rows, ⌊(i/(steps-1))² · 0.8 · T⌋
    (Song et al. 2021, appendix D.2).
    """
    config: Any = schedule.config
    trained = config.num_train_timesteps
    if settings.timesteps is not None:
        grid = torch.tensor(settings.timesteps)
    elif settings.spacing == "quadratic":
        ascending = (np.linspace(0, math.sqrt(trained * 0.8), settings.steps) ** 2).astype(np.int64)
        grid = torch.from_numpy(ascending).flip(0) + config.steps_offset
    else:
        uniform: Any = DDIMScheduler.from_config(config)
        uniform.set_timesteps(settings.steps)
        grid = uniform.timesteps
    if not 0 <= int(grid.min()) <= int(grid.max()) < trained:
        raise ValueError(
            f"sampler: timesteps {int(grid.min())} to {int(grid.max())}; the model was trained on 0 to {trained - 1}"
        )
    return grid
