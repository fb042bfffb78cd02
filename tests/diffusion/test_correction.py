"""The corrected sampling step: what it subtracts, divides and shrinks, against the formulas written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from quest.config.dataset import DatasetSettings
from quest.config.sampling import SamplerSettings
from quest.diffusion import denoiser as denoisers
from quest.diffusion import sampling
from quest.diffusion.correction import Correction, Direction, Update
from quest.diffusion.denoiser import Denoiser
from quest.noise import SampleNoise

CPU = torch.device("cpu")
STEPS = 4


def correction(slope: float = 0, bias: float = 0, deviation: float = 0, direction: Direction = "reduced") -> Correction:
    """The same at all steps."""
    full = torch.full
    return Correction(full((STEPS,), slope), full((STEPS, 1), bias), full((STEPS,), deviation), direction)


class Step(NamedTuple):
    """One step of a trajectory in float64, the predicted noise and the sampler's own (z) being random."""

    a: float
    a_before: float
    update: Update
    x: Tensor
    predicted: Tensor
    z: Tensor
    following: Tensor

    @property
    def sigma(self) -> float:
        return math.sqrt((1 - self.a_before) / (1 - self.a) * (1 - self.a / self.a_before))


def steps(denoiser: Denoiser, eta: float, corrected: Correction | None) -> list[Step]:
    sampler = denoiser.sampler(SamplerSettings(steps=STEPS, eta=eta))
    noise, same = (SampleNoise("evaluation", 0, range(2), denoiser.shape) for _ in range(2))
    predicted = torch.randn(STEPS, 2, *denoiser.shape, generator=torch.Generator().manual_seed(0))
    states = list(sampler.trajectory(lambda _x, call: predicted[call.step], noise, CPU, corrected))
    same.draw()
    z = [same.draw() if eta else torch.zeros_like(states[0]) for _ in range(STEPS)]
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    schedule = [alphas[t].item() for t in sampler.timesteps] + [1.0]
    return [
        Step(
            schedule[index],
            schedule[index + 1],
            sampler.update(index),
            x=states[index].double(),
            predicted=predicted[index].double(),
            z=z[index].double(),
            following=states[index + 1].double(),
        )
        for index in range(STEPS)
    ]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_coefficients_are_those_of_the_step(denoiser: Denoiser, eta: float) -> None:
    for step in steps(denoiser, eta, None):
        assert step.update.deviation == pytest.approx(eta * step.sigma, rel=1e-4)
        expected = math.sqrt(step.a_before / step.a) * step.x
        expected += step.update.noise * step.predicted + step.update.deviation * step.z
        torch.testing.assert_close(step.following, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("direction", ["reduced", "original"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_empty_tables_change_no_bit(denoiser: Denoiser, eta: float, direction: Direction) -> None:
    sampler = denoiser.sampler(SamplerSettings(steps=STEPS, eta=eta))
    predict = denoisers.predictor(denoiser.network)
    results = []
    for given in (None, correction(direction=direction)):
        noise = SampleNoise("evaluation", 0, range(3), denoiser.shape)
        with torch.inference_mode():
            results.append(list(sampler.trajectory(predict, noise, CPU, given)))
    assert all(torch.equal(*states) for states in zip(*results, strict=True))


def test_prediction_loses_its_bias_first_and_is_then_divided() -> None:
    predicted = torch.tensor([1.0, 2.0, -3.0]).view(1, 3, 1, 1)
    slope, bias = torch.tensor([0.0, 0.25]), torch.tensor([[0.0] * 3, [0.5, -0.5, 0.0]])
    corrected = Correction(slope, bias, torch.tensor([0.0, 0.1]))
    assert torch.equal(corrected.noise(predicted, 0), predicted)
    torch.testing.assert_close(corrected.noise(predicted, 1).flatten(), torch.tensor([0.4, 2.0, -2.4]))
    assert corrected.residual(1) == pytest.approx(0.08)


def test_anticorrelated_error_is_not_divided_out() -> None:
    corrected = correction(slope=-0.5, bias=0.5, deviation=0.1)
    assert torch.equal(corrected.noise(torch.ones(1, 1, 2, 2), 0), torch.full((1, 1, 2, 2), 0.5))
    assert corrected.residual(0) == pytest.approx(0.1)


def test_shrink() -> None:
    corrected = correction(slope=1.0, deviation=0.6)  # 0.3 is left of it
    assert corrected.shrink(0, Update(noise=-2.0, deviation=1.0)) == pytest.approx(0.8)
    assert corrected.shrink(0, Update(noise=-2.0, deviation=0.5)) == 0, "saturated"
    assert corrected.shrink(0, Update(noise=-2.0, deviation=0.0)) == 1, "nothing to shrink"


@pytest.mark.parametrize("direction", ["reduced", "original"])
@pytest.mark.parametrize("deviation", [0.01, 100.0])
def test_step_against_the_formulas(denoiser: Denoiser, direction: Direction, deviation: float) -> None:
    """At all steps but the last, which adds no noise; a deviation of 100 saturates."""
    corrected = correction(slope=0.2, bias=0.1, deviation=deviation, direction=direction)
    for step in steps(denoiser, 1.0, corrected)[:-1]:
        c = math.sqrt(1 - step.a_before - step.sigma**2) - math.sqrt(step.a_before * (1 - step.a) / step.a)
        left = step.sigma**2 - (c * deviation / 1.2) ** 2
        assert (left > 0) == (deviation == 0.01)
        shrunk = math.sqrt(max(0.0, left))
        e = (step.predicted - 0.1) / 1.2
        clean = (step.x - math.sqrt(1 - step.a) * e) / math.sqrt(step.a)
        along = math.sqrt(1 - step.a_before - (shrunk if direction == "reduced" else step.sigma) ** 2)
        expected = math.sqrt(step.a_before) * clean + along * e + shrunk * step.z
        torch.testing.assert_close(step.following, expected, atol=1e-4, rtol=1e-4)


def test_without_sampler_noise_only_the_prediction_is_corrected(denoiser: Denoiser) -> None:
    for step in steps(denoiser, 0.0, correction(slope=0.2, bias=0.1, deviation=5.0)):
        expected = math.sqrt(step.a_before / step.a) * step.x + step.update.noise * (step.predicted - 0.1) / 1.2
        torch.testing.assert_close(step.following, expected, atol=1e-4, rtol=1e-4)


def test_export_and_restore() -> None:
    corrected = correction(0.1, 0.2, 0.3, "original")
    tensors, notes = corrected.export()
    assert set(tensors) == {"sampler.slope", "sampler.bias", "sampler.deviation"}
    found = Correction.restore(tensors, notes, STEPS, 1)
    assert found.direction == "original"
    assert found.export()[0].keys() == tensors.keys()
    assert all(torch.equal(found.export()[0][name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler.slop": torch.zeros(STEPS)}, r"sampler\.slop: not part of a sampler's correction, which has"),
        ({"sampler.bias": None}, r"sampler\.bias: missing, but sampler\.deviation, sampler\.slope"),
        ({"sampler.bias": torch.zeros(STEPS, 3)}, r"sampler\.bias: found shape \(4, 3\), expected \(4, 1\)"),
        ({"sampler.slope": torch.full((STEPS,), math.nan)}, r"sampler\.slope: .* all finite"),
    ],
)
def test_tensors_that_do_not_belong(change: dict[str, Any], message: str) -> None:
    tensors, notes = correction().export()
    tensors = {name: tensor for name, tensor in (tensors | change).items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        Correction.restore(tensors, notes, STEPS, 1)


def test_images_are_drawn_with_the_correction(
    denoiser: Denoiser, make_settings: Callable[..., DatasetSettings]
) -> None:
    settings = make_settings(sampler={"eta": 1.0})
    images = {
        bias: sampling.draw(denoiser, denoiser.network, settings, 0, range(3), CPU, given)
        for bias, given in {"none": None, "zero": correction(), "some": correction(bias=0.5)}.items()
    }
    assert torch.equal(images["zero"], images["none"])
    assert not torch.equal(images["some"], images["none"])
