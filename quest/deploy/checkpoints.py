"""Low-bit checkpoints: packed integer codes, scales and what stays full precision, with the recipe that reads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quest import artifacts
from quest.config.dataset import DatasetSettings
from quest.diffusion.correction import PREFIX, Correction
from quest.diffusion.denoiser import Denoiser
from quest.quantization import storage
from quest.quantization.network import QuantizedNetwork
from quest.quantization.recipe import Recipe


@dataclass(frozen=True)
class Checkpoint:
    """A read checkpoint: the network with its codes in place, the method that made it, the artifact's sha256, and how
    the sampler is corrected where the method says so."""

    network: QuantizedNetwork
    method: str
    sha256: str
    correction: Correction | None = None


def save(
    path: Path,
    network: QuantizedNetwork,
    method: str,
    settings: dict[str, Any],
    seed: int,
    inputs: dict[str, str],
    notes: dict[str, Any],
    correction: Correction | None = None,
) -> None:
    """Write a checkpoint; the bit account is made, and the level counts asserted, here."""
    tensors = storage.export(network)
    if correction is not None:
        tables, rest = correction.export()
        tensors, notes = tensors | tables, notes | {"correction": rest}
    manifest = artifacts.Manifest(
        kind="checkpoint",
        settings=settings,
        seeds={"run": seed},
        inputs=inputs,
        notes={"method": method, "recipe": network.recipe.plain(), "account": network.account()} | notes,
    )
    artifacts.save_tensors(path, tensors, manifest)


def load(path: Path, denoiser: Denoiser, settings: DatasetSettings) -> Checkpoint:
    """Read a checkpoint into the network of ``denoiser``, which is taken over.

    Raises ValueError when it was quantized from another model or for another sampler, or has tensors of neither.
    """
    artifact = artifacts.load_tensors(path, "checkpoint")
    manifest = artifact.manifest
    recipe = Recipe.from_plain(manifest.notes["recipe"])
    if manifest.inputs["model"] != denoiser.sha256:
        raise ValueError(
            f"{path}: quantized from model {manifest.inputs['model'][:12]}…, but the model given is "
            f"{denoiser.sha256[:12]}…"
        )
    if recipe.steps != settings.sampler.steps:
        raise ValueError(
            f"{path}: quantized for {recipe.steps} sampling steps, but sampler.steps is {settings.sampler.steps}"
        )
    network = QuantizedNetwork(denoiser.network, recipe, denoiser.example(), search=False)
    tensors = dict(artifact.tensors)
    tables = {name: tensors.pop(name) for name in artifact.tensors if name.startswith(PREFIX)}
    storage.restore(network, tensors)
    correction = None
    if tables:
        correction = Correction.restore(tables, manifest.notes["correction"], recipe.steps, denoiser.shape[0])
    return Checkpoint(network, manifest.notes["method"], manifest.sha256, correction)
