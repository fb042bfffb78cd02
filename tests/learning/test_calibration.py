"""Calibration data: states paired with the steps that they were fed at, and files that do not belong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quest.artifacts import ArtifactError
from quest.config.dataset import DatasetSettings
from quest.config.sampling import SamplerSettings
from quest.diffusion import denoiser as denoisers
from quest.diffusion.denoiser import Denoiser
from quest.learning import calibration as calibrations
from quest.learning.calibration import Calibration
from quest.noise import SampleNoise

CPU = torch.device("cpu")


def test_states_are_paired_with_their_steps(
    calibration: Calibration, denoiser: Denoiser, settings: DatasetSettings
) -> None:
    """One DDIM step from a recorded state, told the recorded timestep, gives the next recorded state."""
    assert calibration.x.shape == (4, 8, 1, 8, 8)
    assert calibration.steps == [0, 1, 2, 3]
    assert calibration.timesteps.tolist() == [751, 501, 251, 1]
    scheduler: Any = denoiser.scheduler
    scheduler.set_timesteps(settings.sampler.steps)
    for index in range(3):
        timestep = int(calibration.timesteps[calibration.steps[index]])
        x = calibration.x[index]
        with torch.no_grad():
            noise = denoiser.network(x, torch.full((len(x),), timestep)).sample
            following: Any = scheduler.step(noise, timestep, x, eta=0.0)
        torch.testing.assert_close(following.prev_sample, calibration.x[index + 1], atol=1e-5, rtol=1e-5)


def test_first_state_is_pure_noise(denoiser: Denoiser, make_settings: Callable[..., DatasetSettings]) -> None:
    settings = make_settings(calibration={"samples_per_step": 70})
    calibration = calibrations.record(denoiser, settings, 5, CPU)
    assert calibration.x.shape[1] == 70, "more than one batch"
    assert torch.equal(calibration.x[0], SampleNoise("calibration", 5, range(70), denoiser.shape).draw())
    assert calibration.x[0].std().item() == pytest.approx(1, abs=0.05)


def test_recorded_steps_are_spread_from_the_noisiest_on(
    denoiser: Denoiser, make_settings: Callable[..., DatasetSettings]
) -> None:
    every = calibrations.record(denoiser, make_settings(sampler={"eta": 1.0}), 0, CPU)
    half = calibrations.record(denoiser, make_settings(sampler={"eta": 1.0}, calibration={"steps": 2}), 0, CPU)
    assert half.steps == [0, 2]
    assert half.timesteps.tolist() == [751, 501, 251, 1], "of all sampling steps"
    assert torch.equal(half.x, every.x[[0, 2]])


def test_samples_in_one_row(calibration: Calibration) -> None:
    samples = calibration.samples(3)
    assert len(samples) == 12
    assert samples.steps.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert samples.timesteps.tolist() == [751] * 3 + [501] * 3 + [251] * 3 + [1] * 3
    assert torch.equal(samples.x[4], calibration.x[1, 1])
    assert len(calibration.samples(100)) == 4 * 8


@pytest.mark.parametrize(("total", "each"), [(1, 1), (4, 1), (11, 2), (12, 3), (1000, 8)])
def test_as_many_samples_of_every_step(calibration: Calibration, total: int, each: int) -> None:
    samples = calibration.evenly(total)
    assert samples.steps.bincount().tolist() == [each] * 4
    assert torch.equal(samples.x, calibration.x[:, :each].flatten(0, 1))


def test_file_round_trip(calibration: Calibration, denoiser: Denoiser, settings: DatasetSettings) -> None:
    recorded = calibrations.record(denoiser, settings, 0, CPU)
    assert torch.equal(recorded.x, calibration.x)
    assert recorded.steps == calibration.steps
    assert torch.equal(recorded.timesteps, calibration.timesteps)
    assert calibration.sha256
    assert not torch.equal(calibrations.record(denoiser, settings, 1, CPU).x, calibration.x)


def test_data_of_another_model(calibration_file: Path, other_model_file: Path, settings: DatasetSettings) -> None:
    with pytest.raises(ValueError, match=r"calibration data of model .*; calibrate again with this model"):
        calibrations.load(calibration_file, denoisers.load(other_model_file), settings)


@pytest.mark.parametrize("changes", [{"sampler": {"eta": 0.5}}, {"calibration": {"samples_per_step": 9}}])
def test_data_of_another_protocol(
    calibration_file: Path, denoiser: Denoiser, make_settings: Callable[..., DatasetSettings], changes: dict
) -> None:
    with pytest.raises(ValueError, match=r"recorded with .*, expected .*; calibrate again"):
        calibrations.load(calibration_file, denoiser, make_settings(**changes))


def test_file_of_another_kind(model_file: Path, denoiser: Denoiser, settings: DatasetSettings) -> None:
    with pytest.raises(ArtifactError, match="kind 'model' where 'calibration' is expected"):
        calibrations.load(model_file, denoiser, settings)


@pytest.mark.parametrize(
    ("steps", "recorded", "first", "second", "last"),
    [(200, 20, 996, 946, 46), (500, 20, 999, 949, 49), (20, 20, 951, 901, 1), (50, 25, 981, 941, 21)],
)
def test_timesteps_of_the_published_sets(
    denoiser: Denoiser, steps: int, recorded: int, first: int, second: int, last: int
) -> None:
    """LSUN-Bedrooms, LSUN-Churches, ImageNet and Stable Diffusion, as the released calibration data have them."""
    timesteps = denoiser.sampler(SamplerSettings(steps=steps)).timesteps[:: steps // recorded].tolist()
    assert len(timesteps) == recorded
    assert (timesteps[0], timesteps[1], timesteps[-1]) == (first, second, last)
