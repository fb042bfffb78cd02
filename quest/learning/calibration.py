"""Calibration data: states of the full-precision sampler, recorded at evenly spread sampling steps.

Data-free, as in QuEST section 3.1: noise is drawn and denoised by the full-precision model itself, and each network
input is kept with the step at which it was fed to the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from quest import artifacts
from quest.architectures import Inputs
from quest.config.quantization import QuantizationSettings
from quest.diffusion import denoiser as denoisers
from quest.diffusion.conditions import choices, in_turn
from quest.diffusion.denoiser import Denoiser
from quest.diffusion.guidance import Guidance
from quest.diffusion.samplers import Sampler
from quest.noise import SampleNoise

_BATCH = 64


@dataclass(frozen=True)
class Calibration:
    """x: (recorded steps, trajectories, C, H, W) float32 network inputs; steps: index of each recorded sampling step;
    sampler: what they were drawn with.

    Of a conditional model: contexts (trajectories, L, d), and null (1, L, d), the context of no condition, where the
    sampler is guided and so needs predictions under both.
    """

    x: Tensor
    steps: list[int]
    sampler: Sampler
    contexts: Tensor | None = None
    null: Tensor | None = None
    sha256: str = ""

    @property
    def timesteps(self) -> Tensor:
        """(sampling steps,) int64, what the network is told at each."""
        return self.sampler.timesteps

    @property
    def halves(self) -> int:
        """Samples that each recorded state gives: one, or two where the sampler is guided."""
        return 1 if self.null is None else 2

    def __len__(self) -> int:
        """Samples of each recorded step."""
        return self.x.shape[1] * self.halves

    def samples(self, each: int) -> Samples:
        """The first ``each`` samples of every recorded step, in one row.

        Where the sampler is guided, a state comes twice, with its condition and without.
        """
        count = min(each, len(self))
        trajectory = torch.arange(count) // self.halves
        x = self.x[:, trajectory.to(self.x.device)]
        steps = torch.tensor(self.steps).repeat_interleave(count)
        samples = Samples(x.flatten(0, 1), self.timesteps.cpu()[steps].to(x.device), steps)
        if self.contexts is None:
            return samples
        contexts = self.contexts if self.null is None else torch.cat([self.contexts, self.null])
        of_sample = trajectory.clone()
        if self.null is not None:
            of_sample[1::2] = len(contexts) - 1
        return replace(samples, contexts=contexts, context_of=of_sample.repeat(len(self.steps)).to(x.device))

    def evenly(self, total: int) -> Samples:
        """About ``total`` samples in one row, the same number of every recorded step: at least one, at most all."""
        return self.samples(max(1, total // len(self.steps)))

    def to(self, device: torch.device) -> Calibration:
        """The same on another device."""
        moved = {name: None if value is None else value.to(device) for name, value in self._tensors().items()}
        return replace(self, **moved)

    def guidance(self, trajectories: Sequence[int]) -> Guidance | None:
        """What the network is told on trajectories with the conditions of these (in turn); None if unconditional."""
        if self.contexts is None:
            return None
        context = self.contexts[torch.tensor(trajectories) % len(self.contexts)]
        return Guidance(context, context[:1] if self.null is None else self.null, self.sampler.guidance_scale)

    def _tensors(self) -> dict[str, Tensor | None]:
        return {"x": self.x, "contexts": self.contexts, "null": self.null}

    def export(self) -> dict[str, Tensor]:
        """The tensors of its artifact."""
        return {name: value for name, value in self._tensors().items() if value is not None}


@dataclass(frozen=True)
class Samples:
    """x: (n, C, H, W) network inputs; timesteps: (n,) on the same device; steps: (n,) sampling steps, on the CPU.

    Of a conditional model: contexts (m, L, d), and which of them each sample has, (n,).
    """

    x: Tensor
    timesteps: Tensor
    steps: Tensor
    contexts: Tensor | None = None
    context_of: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def inputs(self, batch: Tensor) -> Inputs:
        """What the network is told for the samples ``batch``, positions on any device."""
        told = Inputs(self.x[batch], self.timesteps[batch])
        if self.contexts is None or self.context_of is None:
            return told
        return told._replace(context=self.contexts[self.context_of[batch]])


def record(
    model: Denoiser,
    settings: QuantizationSettings,
    seed: int,
    device: torch.device,
    among: Sequence[Any] | None = None,
) -> Calibration:
    """Sample ``calibration.samples_per_step`` trajectories and keep the states before the recorded steps.

    among: classes or prompts to take conditions from, instead of those that the settings name.
    """
    sampler = model.sampler(settings.sampler)
    among = choices(settings.condition) if among is None else among
    steps = list(range(0, settings.sampler.steps, settings.sampler.steps // settings.calibration.steps))
    batches = torch.arange(settings.calibration.samples_per_step).split(_BATCH)
    outputs = denoisers.Outputs(model.network, replayed=True)
    kept, contexts, null = [], [], None
    for batch in tqdm(batches, desc="calibrate", unit="batch", mininterval=5):
        noise = SampleNoise("calibration", seed, batch.tolist(), model.shape)
        guidance = model.guidance(in_turn(among, "calibration", seed, batch.tolist()), sampler.guidance_scale)
        predict = denoisers.predictor(outputs, guidance)
        with torch.inference_mode():
            states = sampler.trajectory(predict, noise, device)
            kept.append(torch.stack([state.cpu() for step, state in enumerate(states) if step in steps]))
        if guidance is not None:
            contexts.append(guidance.context.cpu())
            null = None if guidance.scale == 1 else guidance.null.cpu()
    return Calibration(torch.cat(kept, dim=1), steps, sampler, torch.cat(contexts) if contexts else None, null)


def load(path: Path, denoiser: Denoiser, settings: QuantizationSettings) -> Calibration:
    """Read calibration data. Raises ValueError when it is another model's or was recorded with another sampler."""
    artifact = artifacts.load_tensors(path, "calibration")
    manifest = artifact.manifest
    if manifest.inputs["model"] != denoiser.sha256:
        raise ValueError(
            f"{path}: calibration data of model {manifest.inputs['model'][:12]}…, but the model given is "
            f"{denoiser.sha256[:12]}…; calibrate again with this model"
        )
    if manifest.settings != (expected := depends_on(settings)):
        raise ValueError(f"{path}: recorded with {manifest.settings}, expected {expected}; calibrate again")
    sampler = denoiser.sampler(settings.sampler)
    return Calibration(**artifact.tensors, steps=manifest.notes["steps"], sampler=sampler, sha256=manifest.sha256)


def depends_on(settings: QuantizationSettings) -> dict[str, Any]:
    """What calibration data depends on."""
    condition = None if settings.condition is None else artifacts.plain(settings.condition)
    return {
        "sampler": artifacts.plain(settings.sampler),
        "calibration": artifacts.plain(settings.calibration),
        "condition": condition,
    }
