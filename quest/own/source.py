"""The model that is brought: opened, or refused before any work in one sentence that says what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from quest import architectures
from quest.artifacts import ArtifactError, read_manifest
from quest.deploy import inspection
from quest.diffusion import denoiser as denoisers
from quest.diffusion.denoiser import Denoiser
from quest.sources import pipelines
from quest.sources.weights import read_json

TAKEN = (
    "DDPM and DDIM pipelines, latent diffusion, Stable Diffusion 1.x and 2.x, a U-Net's own folder, CompVis' latent "
    "diffusion checkpoints, and model artifacts of quest"
)
_OTHER_PARTS = {
    "text_encoder_2": "SDXL's second text encoder",
    "text_encoder_3": "a third text encoder",
    "controlnet": "control images",
    "prior": "a prior",
    "image_encoder": "image prompts",
    "adapter": "an adapter",
}
_OTHER_CONDITIONS = {
    "addition_embed_type": "a condition added to the time embedding, as SDXL has it",
    "class_embed_type": "classes in diffusers' own embedding",
    "num_class_embeds": "classes in diffusers' own embedding",
    "encoder_hid_dim_type": "a projection of another encoder's states",
    "time_cond_proj_dim": "the guidance scale as an input, as LCM has it",
}


@dataclass(frozen=True)
class Source:
    """name: what the card calls the model, its hub id where it has one. model: on the CPU, in the precision that it
    came in. sha256: of its files, or nothing for one in memory. artifact: its file, where it is a model artifact.
    scheduler: the class of its own, if known."""

    name: str
    model: Denoiser
    sha256: str = ""
    artifact: Path | None = None
    scheduler: str | None = None

    @property
    def hub_id(self) -> str | None:
        return self.name if "/" in self.name else None

    @property
    def sampler(self) -> str:
        """The sampler of its own pipeline, of those that are here."""
        limits: Any = self.model.scheduler.config
        return (
            "plms" if self.scheduler == "PNDMScheduler" and not (limits.clip_sample or limits.thresholding) else "ddim"
        )


def open_model(model: Any, architecture: Path | None = None, scheduler: Path | None = None) -> Source:
    """Open ``model``: a diffusers pipeline, its folder, that of its U-Net, a hub id, a CompVis ``.ckpt`` with its
    ``architecture``, a model artifact, or a `Denoiser`.

    scheduler: scheduler_config.json of a U-Net alone. Raises ArtifactError or ValueError, before a weight is read where
    the configuration tells it.
    """
    if isinstance(model, Denoiser):
        return Source("a model in memory", model)
    if hasattr(model, "components"):
        return _of_pipeline(model)
    if not isinstance(model, str | PathLike):
        raise ValueError(f"model: found {model!r:.60}; expected a diffusers pipeline or the path of a model")
    path = Path(model)
    if path.suffix == ".safetensors":
        read_manifest(path, "model")
        opened = denoisers.load(path)
        return Source(path.name, opened, opened.sha256, path)
    path = _pipeline_around(pipelines.locate(str(model), architecture))
    if path.is_dir():
        _check_folder(path)
    elif path.suffix != ".ckpt":
        raise ArtifactError(f"{path}: a file of an unknown kind; what is taken: {TAKEN}")
    opened = pipelines.open_source(path, architecture, scheduler=scheduler)
    name = path.resolve().name if Path(model).exists() else str(model)
    return Source(name, opened, pipelines.checksum(path), scheduler=_scheduler_of(path, scheduler))


def _pipeline_around(path: Path) -> Path:
    """The pipeline that a folder called ``unet`` is part of; any other path itself."""
    whole = path.resolve().parent
    return whole if path.is_dir() and path.resolve().name == "unet" and (whole / "model_index.json").is_file() else path


def _check_folder(folder: Path) -> None:
    found = inspection.describe(folder)
    _check(str(folder), found.network, found.config, set(found.others))


def _of_pipeline(pipeline: Any) -> Source:
    parts = {name: part for name, part in pipeline.components.items() if part is not None}
    where = type(pipeline).__name__
    denoises = next((name for name in ("unet", "transformer") if name in parts), None)
    if denoises is None:
        raise ArtifactError(f"{where}: neither unet nor transformer in it; what is taken: {TAKEN}")
    network = parts[denoises]
    _check(where, type(network).__name__, network.config, set(parts))
    kind = type(parts["scheduler"]).__name__ if "scheduler" in parts else None
    return Source(where, pipelines.of_pipeline(pipeline), scheduler=kind)


def _check(where: str, network: str, config: Mapping[str, Any], others: set[str]) -> None:
    """Raises ArtifactError for what cannot be quantized from its files to a folder yet."""
    if network not in architectures.networks():
        raise ArtifactError(f"{where}: {architectures.unexplained(network)}. What is taken: {TAKEN}")
    lacks = [what for part, what in _OTHER_PARTS.items() if part in others]
    lacks += [] if network.startswith("UNet2D") else [f"a transformer ({network}) with its own sampler"]
    lacks += [f"{what} ({key})" for key, what in _OTHER_CONDITIONS.items() if config.get(key)]
    if lacks:
        raise ArtifactError(
            f"{where}: {' and '.join(dict.fromkeys(lacks))} cannot be calibrated here yet. `quest inspect` says what "
            f"its layers would become and how large; what is quantized from its files: {TAKEN}"
        )


def _scheduler_of(path: Path, scheduler: Path | None) -> str | None:
    """The class of a model's own scheduler, as its files name it."""
    places = [scheduler] if scheduler else [path / "scheduler/scheduler_config.json", path / "scheduler_config.json"]
    found = next((place for place in places if place.is_file()), None)
    return None if found is None else read_json(found).get("_class_name")
