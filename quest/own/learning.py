"""What is learned of a network on grids, from calibration data, into a file: the same however the two came to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from quest import artifacts, methods
from quest.artifacts import Manifest, plain
from quest.config.dataset import DatasetSettings
from quest.config.method import Grouping
from quest.config.quantizer import OF_WEIGHTS
from quest.deploy import checkpoints
from quest.deploy.checkpoints import Checkpoint
from quest.learning import reconstruction as reconstructions
from quest.learning.calibration import Calibration
from quest.learning.progress import Progress, beside
from quest.quantization.network import QuantizedNetwork
from quest.quantization.recipe import Recipe


def grids_of_weights(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe learned rounding depends on, as JSON: activations stay in full precision meanwhile."""
    layers = [[key, bits.weight] for key, bits in recipe.policy.overrides]
    grids = {key: getattr(recipe.quantizer, key) for key in OF_WEIGHTS}
    return {"bits": recipe.bits.weight, "layers": layers, **grids}


def reconstruct(
    network: QuantizedNetwork,
    data: Calibration,
    settings: DatasetSettings,
    grouping: Grouping,
    seed: int,
    inputs: Mapping[str, str],
    output: Path,
) -> None:
    """Learn the rounding of the weights; a run that was killed goes on after its last unit. inputs: sha256 of model and
    calibration data, by name."""
    recorded = {
        "reconstruction": plain(settings.reconstruction),
        "weights": grids_of_weights(network.recipe),
        "grouping": grouping,
    }
    manifest = Manifest(kind="reconstruction", settings=recorded, seeds={"run": seed}, inputs=dict(inputs))
    key = {"settings": recorded, "seed": seed, "inputs": manifest.inputs, "device": data.x.device.type}
    progress = reconstructions.Progress(beside(output), key)
    reconstructions.reconstruct(network, data, settings.reconstruction, seed, progress, grouping)
    artifacts.save_tensors(output, progress.tensors, replace(manifest, notes=progress.notes))
    progress.remove()


def finetune(
    network: QuantizedNetwork,
    data: Calibration,
    settings: DatasetSettings,
    method: str,
    seed: int,
    inputs: Mapping[str, str],
    output: Path,
    condition: str | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Quantize by a method and write the checkpoint; a run that was killed goes on after its last epoch. inputs: sha256
    of all that it is made from, by name. notes: what the checkpoint keeps beside those of the method."""
    own = settings.method(method)
    recorded = {"method": plain(own), "quantizer": plain(settings.quantizer)}
    depends = {"settings": recorded, "method": method, "recipe": network.recipe.plain(), "seed": seed}
    progress = Progress(beside(output), {**depends, "inputs": dict(inputs), "device": data.x.device.type})
    outcome = methods.get(method).quantize(network, data, own, seed, progress)
    checkpoint = Checkpoint(
        network,
        method,
        sampler=settings.sampler,
        condition=condition,
        correction=outcome.correction,
        settings=recorded,
        seed=seed,
        inputs=dict(inputs),
        notes={**outcome.notes, **(notes or {})},
    )
    checkpoints.save(output, checkpoint)
    progress.remove()
