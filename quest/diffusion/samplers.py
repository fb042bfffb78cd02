"""Samplers: DDIM with any η on any grid of timesteps, and PLMS, on a model's own noise schedule (diffusers').

Both go by the predicted noise, whatever the network itself predicts (`quest.diffusion.parametrization`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from torch import Tensor

from quest.config.sampling import SamplerSettings
from quest.diffusion.correction import Correction, Update
from quest.diffusion.parametrization import KINDS, Parametrization
from quest.noise import SampleNoise


class Call(NamedTuple):
    """One call of the network while sampling. step: index of the sampling step, 0 is the noisiest; it chooses the
    activation scales of a quantized network. timestep: what the network is told. parametrization: what it predicts."""

    step: int
    timestep: int
    parametrization: Parametrization = Parametrization()


Predict = Callable[[Tensor, Call], Tensor]
"""x (N, C, H, W) and the call to the predicted noise, of the shape of x."""


class Sampler:
    """Goes from noise to samples in ``settings.steps`` steps. timesteps: (steps,) int64, noisiest first.

    Raises ValueError for a model that predicts something unknown, or a grid that does not fit its schedule.
    """

    def __init__(self, schedule: DDIMScheduler, settings: SamplerSettings):
        config: Any = schedule.config
        if config.prediction_type not in KINDS:
            raise ValueError(f"the model predicts {config.prediction_type!r}; known are {', '.join(KINDS)}")
        if settings.kind == "plms" and (config.clip_sample or config.thresholding):
            raise ValueError(
                "sampler.kind is plms, which leaves the predicted image as it is, but the model's scheduler clips it; "
                "set clip_sample: false and import the model again to sample without"
            )
        self.timesteps = _grid(schedule, settings)
        alphas = schedule.alphas_cumprod[self.timesteps].double()
        self._alphas = alphas.tolist()
        self._alphas_after = [*self._alphas[1:], float(schedule.final_alpha_cumprod)]
        if not min(self._alphas) > 0:
            raise ValueError(
                f"sampler: at timestep {int(self.timesteps[0])} nothing of an image is left (ᾱ = 0), so that no noise "
                "can be told from it; choose timesteps below it"
            )
        self._schedule, self._settings = schedule, settings

    @property
    def steps(self) -> int:
        """Number of sampling steps."""
        return len(self.timesteps)

    @property
    def eta(self) -> float:
        """How much of its own noise DDIM adds, 0 to 1."""
        return self._settings.eta

    @property
    def guidance_scale(self) -> float:
        """Of classifier-free guidance; 1 is without."""
        return self._settings.guidance_scale

    def calls(self) -> list[Call]:
        """All calls of the network, in order. PLMS calls it twice in its first step (Liu et al. 2022, eq. 12)."""
        calls = [self._call(step, timestep) for step, timestep in enumerate(self.timesteps.tolist())]
        if self._settings.kind == "plms":
            calls.insert(1, self._call(0, calls[1].timestep))
        return calls

    def _call(self, step: int, timestep: int) -> Call:
        config: Any = self._schedule.config
        alpha = float(self._schedule.alphas_cumprod[timestep])
        return Call(step, timestep, Parametrization(config.prediction_type, alpha))

    def walk(self, noise: SampleNoise, device: torch.device, correction: Correction | None = None) -> Walk:
        """The way from fresh noise to samples, on which the caller takes each step:

            walk = sampler.walk(noise, device)
            for call in sampler.calls():
                walk.step(call, predict(walk.x, call))

        correction: for the noise that a quantized network adds to its prediction.
        """
        if self._settings.kind == "plms":
            return _Plms(noise.draw(device), correction, self._plms())
        return _Ddim(noise.draw(device), correction, self, noise)

    def trajectory(
        self, predict: Predict, noise: SampleNoise, device: torch.device, correction: Correction | None = None
    ) -> Iterator[Tensor]:
        """Yield the states x before each step, noisiest first, and last the finished sample: steps + 1 tensors."""
        walk, calls = self.walk(noise, device, correction), self.calls()
        for before, call in zip([None, *calls], calls, strict=False):
            if before is None or before.step != call.step:  # what is between the calls of one step is no state
                yield walk.x
            walk.step(call, predict(walk.x, call))
        yield walk.x

    def sample(
        self, predict: Predict, noise: SampleNoise, device: torch.device, correction: Correction | None = None
    ) -> Tensor:
        """Finished samples, the last of `trajectory`; no state before them is kept."""
        return deque(self.trajectory(predict, noise, device, correction), maxlen=1).pop()

    def update(self, step: int) -> Update:
        """What DDIM multiplies the predicted noise and its fresh noise by (Song et al. 2021, eq. 12, 16)."""
        return self._update(step, self._settings.eta)

    def noise_to_signal(self, step: int) -> float:
        """(1 - ᾱ) / ᾱ of what the network is given at ``step``."""
        return (1 - self._alphas[step]) / self._alphas[step]

    def after(self, x: Tensor, predicted: Tensor, step: int, eta: float, fresh: Tensor | None) -> Tensor:
        """x after a DDIM step with ``eta``, of which ``fresh`` is the standard normal noise."""
        a, after = self._alphas[step], self._alphas_after[step]
        clean = (x - math.sqrt(1 - a) * predicted) / math.sqrt(a)
        clean = _limited(clean, self._schedule.config)
        deviation = self._update(step, eta).deviation
        x = math.sqrt(after) * clean + math.sqrt(max(0.0, 1 - after - deviation**2)) * predicted
        return x if fresh is None else x + deviation * fresh

    def _update(self, step: int, eta: float) -> Update:
        a, after = self._alphas[step], self._alphas_after[step]
        deviation = eta * math.sqrt((1 - after) / (1 - a) * (1 - a / after))
        return Update(math.sqrt(max(0.0, 1 - after - deviation**2)) - math.sqrt(after * (1 - a) / a), deviation)

    def _plms(self) -> Any:
        plms: Any = PNDMScheduler.from_config(self._schedule.config, skip_prk_steps=True, prediction_type="epsilon")
        plms.set_timesteps(self.steps)
        return plms


class Walk(ABC):
    """A way from noise to samples, one call of the network at a time. x: (N, C, H, W), the state that the coming call
    is made on, in the end the sample."""

    def __init__(self, x: Tensor, correction: Correction | None):
        self.x = x
        self._correction = correction

    def step(self, call: Call, predicted: Tensor) -> None:
        """Go on by what the network predicted for ``x`` in the call: the next of `Sampler.calls`."""
        if self._correction is not None:
            predicted = self._correction.noise(predicted, call.step)
        self.x = self._next(call, predicted)

    @abstractmethod
    def _next(self, call: Call, predicted: Tensor) -> Tensor: ...


class _Ddim(Walk):
    """noise: that the samples began with, and where the sampler's own comes from."""

    def __init__(self, x: Tensor, correction: Correction | None, sampler: Sampler, noise: SampleNoise):
        super().__init__(x, correction)
        self._sampler, self._noise = sampler, noise

    def _next(self, call: Call, predicted: Tensor) -> Tensor:
        eta = self._sampler.eta
        fresh = self._noise.draw(self.x.device) if eta > 0 else None
        if self._correction is not None:
            update = self._sampler.update(call.step)
            eta, fresh = self._correction.randomness(call.step, update, eta, fresh)
        return self._sampler.after(self.x, predicted, call.step, eta, fresh)


class _Plms(Walk):
    """scheduler: diffusers' PNDM without Runge-Kutta steps, which keeps the predictions before."""

    def __init__(self, x: Tensor, correction: Correction | None, scheduler: Any):
        super().__init__(x, correction)
        self._scheduler = scheduler

    def _next(self, call: Call, predicted: Tensor) -> Tensor:
        return self._scheduler.step(predicted, call.timestep, self.x).prev_sample


def _limited(clean: Tensor, config: Any) -> Tensor:
    """The predicted image within the range that the model's scheduler has for it, if it has one.

    Dynamic thresholding (Saharia et al. 2022, section 2.3) divides each image by a high quantile of its absolute
    values, where that is above 1 and at most ``sample_max_value``, and clips to it first.
    """
    if config.thresholding:
        s = torch.quantile(clean.abs().flatten(1), config.dynamic_thresholding_ratio, dim=1)
        s = s.clamp(1, config.sample_max_value).view(-1, 1, 1, 1)
        return clean.clamp(-s, s) / s
    if config.clip_sample:
        return clean.clamp(-config.clip_sample_range, config.clip_sample_range)
    return clean


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
        if config.timestep_spacing == "leading" and trained % settings.steps:
            raise ValueError(_dividing(trained, settings.steps))
        uniform: Any = DDIMScheduler.from_config(config)
        uniform.set_timesteps(settings.steps)
        grid = uniform.timesteps
    if not 0 <= int(grid.min()) <= int(grid.max()) < trained:
        raise ValueError(
            f"sampler: timesteps {int(grid.min())} to {int(grid.max())}; the model was trained on 0 to {trained - 1}"
        )
    return grid


def _dividing(trained: int, steps: int) -> str:
    """What is said of a number of steps that does not divide the timesteps: the nearest numbers that do."""
    numbers = [count for count in range(1, trained + 1) if trained % count == 0]
    nearest = [*[n for n in numbers if n < steps][-1:], *[n for n in numbers if n > steps][:1]]
    return (
        f"sampler.steps is {steps}, which does not divide the {trained} timesteps of the model; take "
        f"{' or '.join(map(str, nearest))} (the released code of latent diffusion rounds its stride down, "
        "and so takes more steps than it is told)"
    )
