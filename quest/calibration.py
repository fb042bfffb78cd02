"""Calibration data: states of the full-precision sampler, recorded at evenly spread sampling steps.

Data-free, as in QuEST section 3.1: noise is drawn and denoised by the full-precision model itself, and each network
input is kept with the step at which it was fed to the network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from quest import artifacts
from quest.config import DatasetSettings
from quest.device import resolve
from quest.models import denoiser as denoisers
from quest.models.denoiser import Denoiser, Sampler
from quest.noise import SampleNoise

_BATCH = 64


@dataclass(frozen=True)
class Calibration:
    """x: (recorded steps, samples, C, H, W) float32 network inputs; steps: index of each recorded sampling step;
    sampler: what they were drawn with."""

    x: Tensor
    steps: list[int]
    sampler: Sampler
    sha256: str = ""

    @property
    def timesteps(self) -> Tensor:
        """(sampling steps,) int64, what the network is told at each."""
        return self.sampler.timesteps

    def samples(self, each: int) -> Samples:
        """The first ``each`` samples of every recorded step, in one row."""
        x = self.x[:, :each]
        steps = torch.tensor(self.steps).repeat_interleave(x.shape[1])
        return Samples(x.flatten(0, 1), self.timesteps.cpu()[steps].to(x.device), steps)

    def to(self, device: torch.device) -> Calibration:
        """The same on another device."""
        return replace(self, x=self.x.to(device))


@dataclass(frozen=True)
class Samples:
    """x: (n, C, H, W) network inputs; timesteps: (n,) on the same device; steps: (n,) sampling steps, on the CPU."""

    x: Tensor
    timesteps: Tensor
    steps: Tensor

    def __len__(self) -> int:
        return len(self.x)


def record(model: Denoiser, settings: DatasetSettings, seed: int, device: torch.device) -> Calibration:
    """Sample ``calibration.samples_per_step`` trajectories and keep the states before the recorded steps."""
    sampler = model.sampler(settings.sampler)
    steps = list(range(0, settings.sampler.steps, settings.sampler.steps // settings.calibration.steps))
    batches = torch.arange(settings.calibration.samples_per_step).split(_BATCH)
    kept = []
    for batch in tqdm(batches, desc="calibrate", unit="batch", mininterval=5):
        noise = SampleNoise("calibration", seed, batch.tolist(), model.shape)
        predict = denoisers.predictor(model.network, sampler.timesteps)
        with torch.inference_mode():
            states = list(sampler.trajectory(predict, noise, device))
        kept.append(torch.stack([states[step] for step in steps]).cpu())
    return Calibration(torch.cat(kept, dim=1), steps, sampler)


def run(settings: DatasetSettings, model: Path, seed: int, output: Path, device: str) -> None:
    """The `calibrate` stage."""
    where = resolve(device)
    denoiser = denoisers.load(model, where)
    calibration = record(denoiser, settings, seed, where)
    sampler = artifacts.plain(settings.sampler)
    manifest = artifacts.Manifest(
        kind="calibration",
        settings={"sampler": sampler, "calibration": artifacts.plain(settings.calibration)},
        seeds={"run": seed},
        inputs={"model": denoiser.sha256},
        notes={"steps": calibration.steps},
    )
    artifacts.save_tensors(output, {"x": calibration.x}, manifest)


def load(path: Path, denoiser: Denoiser, settings: DatasetSettings) -> Calibration:
    """Read calibration data. Raises ValueError when it is another model's or was recorded with another sampler."""
    artifact = artifacts.load_tensors(path, "calibration")
    manifest = artifact.manifest
    if manifest.inputs["model"] != denoiser.sha256:
        raise ValueError(
            f"{path}: calibration data of model {manifest.inputs['model'][:12]}…, but the model given is "
            f"{denoiser.sha256[:12]}…; calibrate again with this model"
        )
    expected = {"sampler": artifacts.plain(settings.sampler), "calibration": artifacts.plain(settings.calibration)}
    if manifest.settings != expected:
        raise ValueError(f"{path}: recorded with {manifest.settings}, expected {expected}; calibrate again")
    sampler = denoiser.sampler(settings.sampler)
    return Calibration(artifact.tensors["x"], manifest.notes["steps"], sampler, manifest.sha256)
