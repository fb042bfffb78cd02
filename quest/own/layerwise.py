"""The stages that learn, of a network whose layers have weight bits of their own: as `quest.stages` has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from quest import artifacts, methods
from quest.artifacts import ArtifactError
from quest.config.dataset import DatasetSettings
from quest.config.method import Rounding
from quest.deploy import checkpoints
from quest.deploy.checkpoints import Checkpoint
from quest.diffusion import denoiser as denoisers
from quest.learning import calibration as calibrations
from quest.learning import reconstruction as reconstructions
from quest.learning.progress import Progress, beside
from quest.quantization.network import QuantizedNetwork
from quest.quantization.recipe import Recipe


def reconstruct(
    settings: DatasetSettings,
    model: Path,
    recipe: Recipe,
    rounding: Rounding,
    seed: int,
    calibration: Path,
    output: Path,
    device: torch.device,
) -> None:
    """Learn the rounding of every layer at its own bits; a run that was killed goes on after its last unit."""
    denoiser = denoisers.load(model, device)
    data = calibrations.load(calibration, denoiser, settings).to(device)
    network = QuantizedNetwork(denoiser.network, recipe, denoiser.example())
    manifest = artifacts.Manifest(
        kind="reconstruction",
        settings={
            "reconstruction": artifacts.plain(settings.reconstruction),
            "recipe": recipe.plain(),
            "grouping": rounding.grouping,
        },
        seeds={"run": seed},
        inputs={"model": denoiser.sha256, "calibration": data.sha256},
    )
    key = {"settings": manifest.settings, "seed": seed, "inputs": manifest.inputs, "device": device.type}
    progress = reconstructions.Progress(beside(output), key)
    reconstructions.reconstruct(network, data, settings.reconstruction, seed, progress, rounding.grouping)
    artifacts.save_tensors(output, progress.tensors, replace(manifest, notes=progress.notes))
    progress.remove()


def finetune(
    settings: DatasetSettings,
    model: Path,
    recipe: Recipe,
    method: str,
    seed: int,
    calibration: Path,
    reconstruction: Path | None,
    output: Path,
    device: torch.device,
    notes: Mapping[str, Any],
) -> None:
    """Quantize by a method and write the checkpoint; a run that was killed goes on after its last epoch. notes: what it
    keeps beside those of the method.

    Raises ArtifactError for rounding that was learned of other bits.
    """
    torch.manual_seed(seed)
    denoiser = denoisers.load(model, device)
    data = calibrations.load(calibration, denoiser, settings).to(device)
    network = QuantizedNetwork(denoiser.network, recipe, denoiser.example())
    inputs = {"model": denoiser.sha256, "calibration": data.sha256}
    if reconstruction is not None:
        learned = artifacts.load_tensors(reconstruction, "reconstruction")
        if learned.manifest.settings["recipe"] != recipe.plain():
            raise ArtifactError(f"{reconstruction}: learned for other bits of layers than were chosen; delete it")
        reconstructions.put(network, learned.tensors)
        inputs["reconstruction"] = learned.manifest.sha256
    recorded = {
        "method": artifacts.plain(settings.method(method)),
        "quantizer": artifacts.plain(settings.quantizer),
    }
    depends = {"settings": recorded, "method": method, "recipe": recipe.plain(), "seed": seed, "inputs": inputs}
    progress = Progress(beside(output), depends | {"device": device.type})
    outcome = methods.get(method).quantize(network, data, settings.method(method), seed, progress)
    checkpoint = Checkpoint(
        network,
        method,
        sampler=settings.sampler,
        condition=denoiser.condition,
        correction=outcome.correction,
        settings=recorded,
        seed=seed,
        inputs=inputs,
        notes={**outcome.notes, **notes},
    )
    checkpoints.save(output, checkpoint)
    progress.remove()
