"""A walk taken step by step against the equations written out: the same bits, from the same draws of noise."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from torch import Tensor

from quest.config.sampling import SamplerSettings
from quest.diffusion.correction import Correction, Direction
from quest.diffusion.samplers import Call, Sampler
from quest.noise import SampleNoise

CPU = torch.device("cpu")
SHAPE, STEPS = (2, 4, 4), 5
SCHEDULE: dict[str, Any] = {"beta_schedule": "linear", "clip_sample": True, "clip_sample_range": 1.5}
UNCLIPPED: dict[str, Any] = SCHEDULE | {"clip_sample": False}  # as PLMS has it
CORRECTION = Correction(torch.linspace(-0.1, 0.3, STEPS), torch.full((STEPS, 2), 0.02), torch.full((STEPS,), 0.05))


def noise() -> SampleNoise:
    return SampleNoise("evaluation", 3, range(3), SHAPE)


def predicted(x: Tensor, call: Call) -> Tensor:
    """Stands in for a network: depends on every element, on the timestep and on the step."""
    return torch.tanh(x * 0.7 + call.timestep / 1000 + call.step) + 0.1 * x.flip(-1)


def make(**settings: Any) -> Sampler:
    schedule = UNCLIPPED if settings.get("kind") == "plms" else SCHEDULE
    return Sampler(DDIMScheduler(**schedule), SamplerSettings(steps=STEPS, **settings))


def walked(sampler: Sampler, correction: Correction | None) -> list[Tensor]:
    """The state before every call, and the sample."""
    walk, states = sampler.walk(noise(), CPU, correction), []
    for call in sampler.calls():
        states.append(walk.x)
        walk.step(call, predicted(walk.x, call))
    return [*states, walk.x]


def ddim(sampler: Sampler, eta: float, correction: Correction | None) -> list[Tensor]:
    """Song et al. 2021, eq. 12 and 16; PTQD, sections 3.2 and 3.3."""
    schedule = DDIMScheduler(**SCHEDULE)
    alphas = [*schedule.alphas_cumprod[sampler.timesteps].double().tolist(), 1.0]
    draws = noise()
    states = [draws.draw()]
    for step, timestep in enumerate(sampler.timesteps.tolist()):
        x, (a, after) = states[-1], alphas[step : step + 2]
        e, z = predicted(x, Call(step, timestep)), draws.draw() if eta else torch.zeros(())
        full = math.sqrt((1 - after) / (1 - a) * (1 - a / after))
        sigma = eta * full
        if correction is not None:
            k = 1 + max(float(correction.slope[step]), 0.0)
            e = (e - correction.bias[step].view(-1, 1, 1)) / k
            if sigma:
                c = math.sqrt(max(0.0, 1 - after - sigma**2)) - math.sqrt(after * (1 - a) / a)
                shrink = math.sqrt(max(0.0, 1 - (c * (float(correction.deviation[step]) / k) / sigma) ** 2))
                if correction.direction == "reduced":
                    sigma = eta * shrink * full
                else:
                    z = z * shrink
        clean = ((x - math.sqrt(1 - a) * e) / math.sqrt(a)).clamp(-1.5, 1.5)
        x = math.sqrt(after) * clean + math.sqrt(max(0.0, 1 - after - sigma**2)) * e
        states.append(x + sigma * z if eta else x)
    return states


@pytest.mark.parametrize("direction", [None, "reduced", "original"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim(eta: float, direction: Direction | None) -> None:
    sampler = make(eta=eta)
    correction = None if direction is None else replace(CORRECTION, direction=direction)
    found, expected = walked(sampler, correction), ddim(sampler, eta, correction)
    assert len(found) == STEPS + 1
    assert all(torch.equal(*states) for states in zip(found, expected, strict=True))


@pytest.mark.parametrize("correction", [None, CORRECTION])
def test_plms(correction: Correction | None) -> None:
    """diffusers' own, which is called twice in the first step."""
    sampler = make(kind="plms", eta=0.0)
    plms: Any = PNDMScheduler.from_config(DDIMScheduler(**UNCLIPPED).config, skip_prk_steps=True)
    plms.set_timesteps(STEPS)
    calls = [Call(max(0, number - 1), timestep) for number, timestep in enumerate(plms.timesteps.tolist())]
    assert [call[:2] for call in sampler.calls()] == [call[:2] for call in calls]
    expected = [noise().draw()]
    for call in calls:
        e = predicted(expected[-1], call)
        e = e if correction is None else correction.noise(e, call.step)
        expected.append(plms.step(e, call.timestep, expected[-1]).prev_sample)
    found = walked(sampler, correction)
    assert len(found) == STEPS + 2
    assert all(torch.equal(*states) for states in zip(found, expected, strict=True))


@pytest.mark.parametrize("settings", [{"eta": 0.0}, {"eta": 1.0}, {"kind": "plms", "eta": 0.0}])
def test_a_trajectory_has_the_states_before_each_step(settings: dict[str, Any]) -> None:
    """Not what is between the two calls of PLMS's first step."""
    sampler = make(**settings)
    found = list(sampler.trajectory(predicted, noise(), CPU, CORRECTION))
    expected = walked(sampler, CORRECTION)
    if sampler.calls()[1].step == 0:
        del expected[1]
    assert len(found) == STEPS + 1
    assert all(torch.equal(*states) for states in zip(found, expected, strict=True))
