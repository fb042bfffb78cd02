"""Record states of the full-precision sampler to calibrate and finetune on."""

from __future__ import annotations

from pathlib import Path

import torch

from quest import artifacts
from quest.config.dataset import DatasetSettings
from quest.diffusion import denoiser as denoisers
from quest.learning import calibration as calibrations
from quest.stages import DEVICE, MODEL, OUTPUT, PROTOCOL, SEED

SECTIONS = ("sampler", "condition", "calibration")
PARAMETERS = (*PROTOCOL, MODEL, SEED, OUTPUT, DEVICE)


def run(dataset: str, settings: DatasetSettings, model: Path, seed: int, output: Path, device: torch.device) -> None:
    """Write an artifact of kind "calibration"."""
    denoiser = denoisers.load(model, device)
    calibration = calibrations.record(denoiser, settings, seed, device)
    manifest = artifacts.Manifest(
        kind="calibration",
        settings=calibrations.depends_on(settings),
        seeds={"run": seed},
        inputs={"model": denoiser.sha256},
        notes={"steps": calibration.steps},
    )
    artifacts.save_tensors(output, calibration.export(), manifest)
