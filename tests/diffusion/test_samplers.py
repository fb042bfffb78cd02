"""Facts of the published samplers, and diffusers' schedulers where they do the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from torch import Tensor, nn

from quest.config.reading import validate
from quest.config.sampling import ConditionSettings, SamplerSettings
from quest.diffusion.conditioners import ClassEmbedder
from quest.diffusion.conditions import conditions
from quest.diffusion.denoiser import Denoiser, predictor
from quest.diffusion.guidance import Guidance
from quest.diffusion.samplers import Call, Sampler
from quest.noise import SampleNoise

CPU = torch.device("cpu")
SHAPE = (2, 4, 4)
LATENT: dict[str, Any] = {
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
PIXEL: dict[str, Any] = {"beta_schedule": "linear", "clip_sample": False}


def sampler(schedule: dict[str, Any], **settings: Any) -> Sampler:
    return Sampler(DDIMScheduler(**schedule), validate(SamplerSettings, settings, "tests"))


def predicted(x: Tensor, timestep: int) -> Tensor:
    """Stands in for a network: depends on every element and on the timestep."""
    return torch.tanh(x * 0.7 + timestep / 1000) + 0.1 * x.flip(-1)


@pytest.mark.parametrize(
    ("steps", "first", "second"), [(20, 951, 901), (50, 981, 961), (200, 996, 991), (500, 999, 997)]
)
def test_uniform_timesteps_of_latent_models(steps: int, first: int, second: int) -> None:
    timesteps = sampler(LATENT, steps=steps).timesteps.tolist()
    assert timesteps == list(range(first, 0, second - first))
    assert timesteps[-1] == 1


def test_the_published_400_steps_are_500() -> None:
    """The released code takes the stride ⌊1000/400⌋ = 2, and so all of 1, 3, …, 999."""
    assert sampler(LATENT, steps=500).timesteps.tolist() == [t + 1 for t in range(0, 1000, 1000 // 400)][::-1]


def test_quadratic_timesteps_of_cifar10() -> None:
    timesteps = sampler(PIXEL, steps=100, spacing="quadratic").timesteps.tolist()
    assert timesteps == [int(t) for t in np.linspace(0, np.sqrt(800), 100) ** 2][::-1]
    assert timesteps[:3] == [800, 783, 768]
    assert timesteps[-5:] == [1, 0, 0, 0, 0]
    assert len(set(timesteps)) == 96


def test_given_timesteps() -> None:
    assert sampler(LATENT, steps=3, timesteps=[900, 500, 3]).timesteps.tolist() == [900, 500, 3]
    with pytest.raises(ValueError, match="timesteps 0 to 1000; the model was trained on 0 to 999"):
        sampler(LATENT, steps=2, timesteps=[1000, 0])


def test_last_step_goes_to_the_first_alpha_of_the_schedule_or_to_none_left() -> None:
    x = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    for schedule, after in ((LATENT, 1 - 0.0015), (PIXEL, 1.0)):
        last = sampler(schedule, steps=1, timesteps=[1])
        betas = DDIMScheduler(**schedule).betas[:2]
        now = float(torch.prod(1 - betas.double()))
        *_, found = last.trajectory(lambda x, _: predicted(x, 1), Fixed([x]), CPU)
        noise = predicted(x, 1)
        clean = (x - (1 - now) ** 0.5 * noise) / now**0.5
        torch.testing.assert_close(found, after**0.5 * clean + (1 - after) ** 0.5 * noise, atol=1e-5, rtol=1e-5)


class Fixed(SampleNoise):
    """Noise that is given, one tensor a draw."""

    def __init__(self, tensors: list[Tensor]):
        self.tensors = list(tensors)

    def draw(self, device: torch.device | str = "cpu") -> Tensor:
        return self.tensors.pop(0)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(("schedule", "steps"), [(LATENT, 20), (LATENT, 50), (PIXEL, 10)])
def test_ddim_is_that_of_diffusers_on_uniform_grids(schedule: dict[str, Any], steps: int, eta: float) -> None:
    noise = list(torch.randn(steps + 1, 3, *SHAPE, generator=torch.Generator().manual_seed(1)))
    found = list(
        sampler(schedule, steps=steps, eta=eta).trajectory(
            lambda x, call: predicted(x, call.timestep), Fixed(noise), CPU
        )
    )
    theirs: Any = DDIMScheduler(**schedule)
    theirs.set_timesteps(steps)
    x = noise[0]
    for index, t in enumerate(theirs.timesteps.tolist()):
        fresh = noise[index + 1] if eta else None
        x = theirs.step(predicted(x, t), t, x, eta=eta, variance_noise=fresh).prev_sample
        torch.testing.assert_close(found[index + 1], x, atol=2e-4, rtol=2e-4)
    assert len(found) == steps + 1


def test_plms_is_that_of_diffusers_with_one_call_more_than_steps() -> None:
    seen: list[Call] = []

    def predict(x: Tensor, call: Call) -> Tensor:
        seen.append(call)
        return predicted(x, call.timestep)

    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(2))
    ours = sampler(LATENT, kind="plms", steps=50)
    found = list(ours.trajectory(predict, Fixed([x]), CPU))
    assert len(found) == 51
    assert ours.calls() == seen
    assert len(seen) == 51
    assert [call.step for call in seen] == [0, 0, *range(1, 50)]  # the call more is of step 0, and takes its scales

    theirs: Any = PNDMScheduler(
        skip_prk_steps=True, **{key: value for key, value in LATENT.items() if key != "clip_sample"}
    )
    theirs.set_timesteps(50)
    assert theirs.timesteps.tolist() == [call.timestep for call in seen]
    for t in theirs.timesteps.tolist():
        x = theirs.step(predicted(x, t), t, x).prev_sample
    torch.testing.assert_close(found[-1], x)


class Conditional(UNet2DConditionModel):
    """A network of a context that is called as diffusers' is."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.batches: list[int] = []
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor) -> Any:
        self.batches.append(len(x))
        told = context.mean((1, 2)).view(-1, 1, 1, 1) + timestep.view(-1, 1, 1, 1) / 1000
        return type("Output", (), {"sample": torch.tanh(x + told)})


def test_guidance_in_one_batch_is_two_calls() -> None:
    torch.manual_seed(0)
    network, x, call = Conditional(), torch.randn(3, *SHAPE), Call(0, 500)
    context, null = torch.randn(3, 2, 5), torch.randn(1, 2, 5)
    found = predictor(network, Guidance(context, null, 3.0))(x, call)
    assert network.batches == [6]
    t = torch.full((3,), 500)
    without, under = (network(x, t, each).sample for each in (null.expand(3, 2, 5), context))
    torch.testing.assert_close(found, without + 3.0 * (under - without))


def test_without_guidance_only_the_condition_is_used() -> None:
    network, x = Conditional(), torch.randn(3, *SHAPE)
    context = torch.randn(3, 2, 5)
    found = predictor(network, Guidance(context, torch.full((1, 2, 5), torch.nan), 1.0))(x, Call(0, 500))
    assert network.batches == [3]
    assert torch.equal(found, network(x, torch.full((3,), 500), context).sample)


def test_a_conditional_sample_is_the_same_in_any_batch() -> None:
    torch.manual_seed(0)
    embedder = ClassEmbedder(11, 5)
    model: Any = Denoiser(Conditional(), DDIMScheduler(**LATENT), conditioner=embedder)
    chosen = ConditionSettings(classes=10)
    ours = sampler(LATENT, steps=4, eta=1.0, guidance_scale=2.0)

    def draw(indices: list[int]) -> Tensor:
        guidance = model.guidance(conditions(chosen, "evaluation", 0, indices), ours.guidance_scale)
        noise = SampleNoise("evaluation", 0, indices, SHAPE)
        with torch.no_grad():
            *_, last = ours.trajectory(predictor(model.network, guidance), noise, CPU)
        return last

    together = draw(list(range(7)))
    apart = torch.cat([draw([0, 1]), draw([2]), draw([3, 4, 5, 6])])
    torch.testing.assert_close(together, apart)
    assert not torch.allclose(together[0], together[1])


def test_images_take_their_conditions_in_turn() -> None:
    chosen = ConditionSettings(classes=3)
    assert conditions(chosen, "evaluation", 0, range(7)) == [0, 1, 2, 0, 1, 2, 0]
    assert conditions(chosen, "evaluation", 5, [4, 2]) == [1, 2]
    assert conditions(None, "evaluation", 0, range(3)) is None


def test_calibration_takes_conditions_in_an_order_of_its_seed() -> None:
    chosen = ConditionSettings(classes=100)
    first = conditions(chosen, "calibration", 0, range(100))
    assert first is not None
    assert sorted(first) == list(range(100))
    assert first != list(range(100))
    assert first == conditions(chosen, "calibration", 0, range(100))
    assert first != conditions(chosen, "calibration", 1, range(100))
    assert conditions(chosen, "calibration", 0, [100, 7]) == [first[0], first[7]]
