"""What pipelines of their own kind draw, and what they tell their networks, is what diffusers' own call has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

from quest import architectures
from quest.artifacts import ArtifactError
from quest.own.drawing import FAMILIES, Asked, Pipeline
from tests.own import published

STEPS = 3


def opened(kind: str, folder: Path) -> tuple[Pipeline, Any]:
    """A pipeline of a kind, and the same once more as diffusers reads it."""
    asked = Asked(steps=STEPS, size=published.SIZES.get(kind))
    published.MAKE[kind](folder / "words").save_pretrained(folder / "theirs")
    own, plain = (Pipeline.open(folder / "theirs", asked, torch.device("cpu")) for _ in range(2))
    return own, plain.pipeline


def test_every_family_has_a_miniature() -> None:
    assert {published.CLASS[kind] for kind in published.MAKE} == set(FAMILIES)


@pytest.mark.parametrize("kind", published.MAKE)
def test_images_and_what_the_network_is_told(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, plain = opened(kind, tmp_path)
    assert type(plain).__name__ == published.CLASS[kind]
    wanted = [1, 0, 2] if own.family.condition == "class" else ["a", "b", "a b"]
    monkeypatch.setattr("quest.own.drawing._seed", lambda _purpose, _seed, index: index)
    call = own.arguments() | {own.family.takes: wanted, "output_type": "np"}
    given: list[torch.Tensor] = []
    network = getattr(plain, own.family.part)
    name = "sample" if own.family.part == "unet" else "hidden_states"
    network.register_forward_pre_hook(
        lambda _network, args, named: given.append(args[0] if args else named[name]), with_kwargs=True
    )
    with torch.no_grad():
        expected = plain(**call, generator=[torch.Generator().manual_seed(i) for i in range(3)]).images
    images = own.images(wanted, "test", 0, range(3))
    assert images.shape[1:] == own.rehearse(wanted[0]).shape
    difference = images.permute(0, 2, 3, 1).double() / 255 - torch.from_numpy(np.asarray(expected)).double()
    assert difference.abs().max() <= 1 / 255, "the images of diffusers' own call, in 8 bits"
    # In other batches, so that an image depends on its own number alone.
    calls = own.record(wanted, 0, [0, 2], own.rehearse(wanted[0]).timesteps, batch=2)
    guided = len(given[0]) // 3
    assert calls.x.shape[:2] == (2, 3 * guided)
    data = calls.samples(3 * guided)
    assert len(data) == len(data.steps) == 2 * 3 * guided
    for index in range(len(data)):
        step, image, kind_of_sample = int(data.steps[index]), index % (3 * guided) // guided, index % guided
        told = data.inputs(torch.tensor([index]))
        passed, *_ = architectures.of(own.network).arguments(told)
        assert told.timesteps[0] == calls.timesteps[step]
        torch.testing.assert_close(passed[0], given[step][kind_of_sample * 3 + image], rtol=1e-3, atol=1e-3)


def test_other_samples_are_told_other_things(tmp_path: Path) -> None:
    """Without that, a test of what is told would see nothing."""
    own, _ = opened("sdxl", tmp_path)
    calls = own.record(["a", "b"], 0, [1], own.rehearse("a").timesteps, batch=2)
    assert calls.contexts is not None
    null, a, again, b = calls.contexts[1], calls.contexts[0], calls.contexts[3], calls.contexts[2]
    assert {*calls.added} == {"text_embeds", "time_ids"}
    differ = [not torch.equal(*pair) for pair in ((null, a), (null, b), (a, b))]
    assert torch.equal(null, again) or torch.equal(a, b)
    assert sum(differ) >= 2
    both = calls.to(torch.device("cpu")).export()
    assert {"added.text_embeds", "added.time_ids", "contexts", "times", "x"} == set(both)


def test_flow_matching_has_its_own_steps(tmp_path: Path) -> None:
    """Shifted towards noise, by the scheduler's rule: σ' = 3σ / (1 + 2σ) of Stable Diffusion 3."""
    own, _ = opened("sd3", tmp_path)
    sigmas = np.array(own.rehearse("a").timesteps) / 1000
    plain = np.linspace(1, sigmas[-1] / (3 - 2 * sigmas[-1]), STEPS)
    np.testing.assert_allclose(sigmas, 3 * plain / (1 + 2 * plain), rtol=1e-4)


def test_two_calls_at_a_timestep_are_one_step(tmp_path: Path) -> None:
    from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler

    own, _ = opened("sdxl", tmp_path)
    own.pipeline.scheduler = HeunDiscreteScheduler.from_config(own.pipeline.scheduler.config)
    rehearsed = own.rehearse("a")
    assert len(rehearsed.timesteps) == STEPS == len(set(rehearsed.timesteps))
    assert own.record(["a"], 0, range(STEPS), rehearsed.timesteps, 1).x.shape[0] == STEPS


def test_what_cannot_be_told_again_is_refused(tmp_path: Path) -> None:
    own, _ = opened("flux", tmp_path)
    height = own.arguments
    own.arguments = lambda: height() | {"width": 32}  # type: ignore[method-assign]
    with pytest.raises(ArtifactError, match=r"FluxPipeline: its own call with .* fails: found .* tokens of an image"):
        own.rehearse("a")


def test_a_network_that_is_told_more_is_refused(tmp_path: Path) -> None:
    own, _ = opened("pixart-sigma", tmp_path)
    call = own.pipeline.transformer.forward

    def shifted(hidden_states: torch.Tensor, *args: Any, **named: Any) -> Any:
        scale = 2.0 if "added_cond_kwargs" in named else 1.0  # as only its pipeline calls it
        return call(hidden_states * scale, *args, **named)

    own.pipeline.transformer.forward = shifted
    with pytest.raises(ArtifactError, match="tells it more than its context and encoder_attention_mask"):
        own.rehearse("a")


def test_a_call_that_fails_says_why(tmp_path: Path) -> None:
    published.dit(tmp_path).save_pretrained(tmp_path / "theirs")
    own = Pipeline.open(tmp_path / "theirs", Asked(steps=2, size=16), torch.device("cpu"))
    with pytest.raises(ArtifactError, match=r"DiTPipeline: its own call with .*'height': 16.* fails: .*height"):
        own.rehearse(0)


def test_a_scheduler_that_changes_its_steps_is_refused(tmp_path: Path) -> None:
    own, _ = opened("dit", tmp_path)
    times = own.rehearse(0).timesteps
    own.pipeline.scheduler = DPMSolverMultistepScheduler.from_config(own.pipeline.scheduler.config)
    with pytest.raises(ArtifactError, match="expected a scheduler that always goes through the same"):
        own.record([0], 0, [0], times, 1)
