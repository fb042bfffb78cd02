"""The stages that learn, of a network whose layers have weight bits of their own: as `quest.stages` has them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from quest import artifacts
from quest.artifacts import ArtifactError
from quest.config.dataset import DatasetSettings
from quest.config.method import Rounding
from quest.diffusion import denoiser as denoisers
from quest.learning import calibration as calibrations
from quest.learning import reconstruction as reconstructions
from quest.own import learning
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
    """Learn the rounding of every layer at its own bits, for all recipes with these grids of weights; a run that was
    killed goes on after its last unit."""
    denoiser = denoisers.load(model, device)
    data = calibrations.load(calibration, denoiser, settings).to(device)
    network = QuantizedNetwork(denoiser.network, recipe, denoiser.example())
    inputs = {"model": denoiser.sha256, "calibration": data.sha256}
    learning.reconstruct(network, data, settings, rounding.grouping, seed, inputs, output)


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
        if learned.manifest.settings["weights"] != learning.grids_of_weights(recipe):
            raise ArtifactError(f"{reconstruction}: learned for other bits of layers than were chosen; delete it")
        reconstructions.put(network, learned.tensors)
        inputs["reconstruction"] = learned.manifest.sha256
    learning.finetune(network, data, settings, method, seed, inputs, output, denoiser.condition, notes)
