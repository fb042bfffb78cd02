"""Low-bit checkpoints: packed integer codes, scales and what stays full precision, with all that reading them needs.

Beside the tensors stand the recipe of the grids, the sampler that they were made for, what the model is conditioned on
and how its sampler is corrected; of the model that was quantized, the sha256.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quest import artifacts
from quest.artifacts import ArtifactError, Manifest
from quest.config.sampling import SamplerSettings
from quest.diffusion.correction import PREFIX, Correction
from quest.diffusion.denoiser import Denoiser
from quest.quantization import storage
from quest.quantization.network import QuantizedNetwork
from quest.quantization.recipe import Recipe


@dataclass(frozen=True)
class Checkpoint:
    """A quantized network and how it came to be.

    sampler: what its steps are those of. correction: of that sampler, where the method makes one. condition: "class",
    "text" or None. settings: what else the network was made by, as plain JSON. inputs: sha256 of what it was made from,
    "model" among them. sha256: of the artifact, once it is one.
    """

    network: QuantizedNetwork
    method: str
    sampler: SamplerSettings
    condition: str | None = None
    correction: Correction | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    inputs: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""


def save(path: Path, checkpoint: Checkpoint) -> Manifest:
    """Write a checkpoint; the bit account is made, and the level counts asserted, here."""
    network = checkpoint.network
    tensors, notes = storage.export(network), dict(checkpoint.notes)
    if checkpoint.correction is not None:
        tables, rest = checkpoint.correction.export()
        tensors, notes = tensors | tables, notes | {"correction": rest}
    own = {"method": checkpoint.method, "recipe": network.recipe.plain(), "account": network.account()}
    manifest = Manifest(
        kind="checkpoint",
        settings=checkpoint.settings | {"sampler": artifacts.plain(checkpoint.sampler)},
        seeds={"run": checkpoint.seed},
        inputs=checkpoint.inputs,
        notes=own | {"condition": checkpoint.condition} | notes,
    )
    return artifacts.save_tensors(path, tensors, manifest)


def load(path: Path, denoiser: Denoiser) -> Checkpoint:
    """Read a checkpoint into the network of ``denoiser``, which is taken over.

    Raises ValueError when it was quantized from another model, does not say for which sampler, or has strange tensors.
    """
    artifact = artifacts.load_tensors(path, "checkpoint")
    manifest = artifact.manifest
    if manifest.inputs["model"] != denoiser.sha256:
        raise ValueError(
            f"{path}: quantized from model {manifest.inputs['model'][:12]}…, but the model given is "
            f"{denoiser.sha256[:12]}…"
        )
    if "sampler" not in manifest.settings:
        raise ArtifactError(
            f"{path}: made before checkpoints said which sampler they are for; make it again with `snakemake {path}`"
        )
    notes = dict(manifest.notes)
    recipe = Recipe.from_plain(notes.pop("recipe"))
    network = QuantizedNetwork(denoiser.network, recipe, denoiser.example(), search=False)
    tensors = dict(artifact.tensors)
    tables = {name: tensors.pop(name) for name in artifact.tensors if name.startswith(PREFIX)}
    storage.restore(network, tensors)
    correction = None
    if tables:
        correction = Correction.restore(tables, notes.pop("correction"), recipe.steps, denoiser.shape[0])
    for made_anew in ("account", "condition"):
        notes.pop(made_anew, None)
    return Checkpoint(
        network,
        method=notes.pop("method"),
        sampler=SamplerSettings.model_validate(manifest.settings["sampler"]),
        condition=denoiser.condition,
        correction=correction,
        settings=manifest.settings,
        seed=manifest.seeds["run"],
        inputs=manifest.inputs,
        notes=notes,
        sha256=manifest.sha256,
    )


def require_sampler(path: Path, checkpoint: Checkpoint, sampler: SamplerSettings) -> None:
    """Raise ValueError unless the checkpoint in ``path`` was made for ``sampler``, a protocol's."""
    made_for, expected = artifacts.plain(checkpoint.sampler), artifacts.plain(sampler)
    differing = [key for key in expected if made_for[key] != expected[key]]
    if differing:
        found, wanted = (", ".join(f"{key} {each[key]}" for key in differing) for each in (made_for, expected))
        raise ValueError(
            f"{path}: quantized for a sampler with {found}, but the protocol's has {wanted}; finetune again"
        )
