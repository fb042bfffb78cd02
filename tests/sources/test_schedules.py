"""Schedulers by their class: those of DDPM's family give their schedule, all others are refused by name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quest.artifacts import ArtifactError
from quest.config.dataset import DatasetSettings
from quest.diffusion import denoiser as denoisers
from quest.sources.schedules import FAMILY, OTHERS, training_schedule, without_clipping
from quest.stages import import_model

diffusers: Any = importlib.import_module("diffusers")  # schedulers by name
PLACE = Path("scheduler_config.json")


def schedule(theirs: Any, **changes: Any) -> Any:
    """Of a scheduler of diffusers, by its configuration as saved."""
    return training_schedule(dict(theirs.config) | {"_class_name": type(theirs).__name__} | changes, PLACE)


@pytest.mark.parametrize("name", sorted(set(FAMILY) - {"DPMSolverSDEScheduler"}))  # which needs another package
def test_family_has_the_betas_of_diffusers(name: str, caplog: pytest.LogCaptureFixture) -> None:
    theirs = getattr(diffusers, name)(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    ours = schedule(theirs)
    assert torch.equal(ours.betas, theirs.betas)
    assert not caplog.records, "every field of it is known"


@pytest.mark.parametrize("name", sorted(set(FAMILY) - {"DPMSolverSDEScheduler"}))
def test_who_clips_where_the_file_does_not_say(name: str) -> None:
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    default = "clip_sample" in parameters and parameters["clip_sample"].default
    assert training_schedule({"_class_name": name}, PLACE).config["clip_sample"] is default


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("CMStochasticIterativeScheduler", "a consistency model"),
        ("FlowMatchEulerDiscreteScheduler", "flow matching"),
        ("FlowMatchHeunDiscreteScheduler", "flow matching"),
        ("ScoreSdeVeScheduler", "a stochastic differential equation"),
        ("KarrasVeScheduler", "a variance-exploding process"),
        ("EDMEulerScheduler", "EDM"),
        ("EDMDPMSolverMultistepScheduler", "EDM"),
        ("LCMScheduler", "distilled to consistency"),
        ("TCDScheduler", "distilled to consistency"),
        ("UnCLIPScheduler", "an image prior"),
        ("VQDiffusionScheduler", "discrete diffusion"),
        ("DDIMInverseScheduler", "inversion"),
        ("MagicScheduler", "a kind that is not known here"),
    ],
)
def test_others_are_refused_by_name(name: str, of: str) -> None:
    with pytest.raises(ArtifactError, match=rf"^scheduler_config\.json: {name} is the scheduler of .*{of}"):
        training_schedule({"_class_name": name}, PLACE)
    with pytest.raises(ArtifactError, match=name):
        training_schedule({"_class_name": "DDPMScheduler"}, PLACE, named=name)


def test_no_scheduler_is_in_both_lists() -> None:
    assert not [name for name in FAMILY if name.startswith(tuple(OTHERS))]


@pytest.mark.parametrize("name", ["sigmoid", "laplace"])
def test_betas_that_only_ddpm_knows(name: str) -> None:
    theirs = diffusers.DDPMScheduler(beta_schedule=name)
    assert torch.equal(schedule(theirs).betas, theirs.betas)


def test_betas_rescaled_to_no_signal() -> None:
    theirs = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    ours = schedule(theirs)
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    assert ours.config.trained_betas == theirs.betas.tolist(), "so that every sampler of the model has them"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction_type": "flow_prediction"}, "prediction_type is 'flow_prediction'; known are 'epsilon'"),
        ({"beta_schedule": "magic"}, "beta_schedule is 'magic'; known are 'linear'"),
        ({"timestep_spacing": "magic"}, "timestep_spacing is 'magic'"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas is True; known are False"),
        ({"timestep_type": "continuous"}, "timestep_type is 'continuous'"),
        ({"beta_end": 2.0}, "its betas are not all between 0 and 1"),
        ({"beta_end": float("nan")}, "its betas are not all between 0 and 1"),
        ({"trained_betas": [0.1] * 10}, "10 betas for 1000 timesteps"),
        ({"num_train_timesteps": "many"}, "no noise schedule can be made of it"),
    ],
)
def test_what_a_file_says_is_judged(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        training_schedule({"_class_name": "DDPMScheduler"} | changes, PLACE)
    assert "\n" not in str(caught.value)


def test_clipping_can_be_left_out() -> None:
    theirs = diffusers.DDIMScheduler(thresholding=True, beta_end=0.01)
    assert (schedule(theirs).config.clip_sample, schedule(theirs).config.thresholding) == (True, True)
    ours = without_clipping(schedule(theirs))
    assert (ours.config["clip_sample"], ours.config["thresholding"]) == (False, False)
    assert torch.equal(ours.betas, theirs.betas)


@pytest.mark.parametrize("clip", [True, False])
def test_import_keeps_the_schedule(
    publish: Callable[..., Path], make_settings: Callable[..., DatasetSettings], tmp_path: Path, clip: bool
) -> None:
    theirs = diffusers.DDPMScheduler(beta_schedule="sigmoid", prediction_type="v_prediction")
    folder, output = publish(scheduler=theirs), tmp_path / "model.safetensors"
    import_model.run("d", make_settings(source=str(folder), clip_sample=clip), None, output)
    loaded = denoisers.load(output).scheduler
    assert torch.equal(loaded.betas, theirs.betas)
    assert loaded.config["prediction_type"] == "v_prediction"
    assert loaded.config["clip_sample"] is clip
