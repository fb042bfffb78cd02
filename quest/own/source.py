"""The model that is brought: opened, or refused before any work in one sentence that says what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import diffusers
import torch

from quest import architectures
from quest.artifacts import ArtifactError, read_manifest
from quest.deploy import inspection
from quest.deploy.packed.description import PARTS
from quest.deploy.packed.pipelines import OF_CLASSES, QuestClassPipeline
from quest.diffusion import denoiser as denoisers
from quest.diffusion.conditioners import ClassLabels
from quest.diffusion.denoiser import Denoiser
from quest.own.drawing import FAMILIES, Family
from quest.sources import pipelines
from quest.sources.weights import in_one_line, read_json

TAKEN = (
    "DDPM and DDIM pipelines, latent diffusion, Stable Diffusion 1.x, 2.x, XL and 3, DiT, PixArt, Flux, a U-Net's own "
    "folder, CompVis' latent diffusion checkpoints, and model artifacts of quest"
)
_FIRST_STAGES = ("vae", "vqvae")
_OTHER_PARTS = {
    "text_encoder_2": "a second text encoder",
    "text_encoder_3": "a third text encoder",
    "controlnet": "control images",
    "prior": "a prior",
    "image_encoder": "image prompts",
    "adapter": "an adapter",
}
_OTHER_CONDITIONS = {
    "addition_embed_type": "a condition added to the time embedding",
    "class_embed_type": "classes that are embedded otherwise than by their number",
    "num_class_embeds": "classes beside a context",
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
    def takes(self) -> str | None:
        """What it is conditioned on: "class", "text" or None."""
        return self.model.condition

    @property
    def classes(self) -> int:
        """How many it knows, of a model of classes."""
        assert isinstance(self.model.conditioner, ClassLabels)
        return self.model.conditioner.classes

    @property
    def sampler(self) -> str:
        """The sampler of its own pipeline, of those that are here."""
        limits: Any = self.model.scheduler.config
        return (
            "plms" if self.scheduler == "PNDMScheduler" and not (limits.clip_sample or limits.thresholding) else "ddim"
        )


@dataclass(frozen=True)
class OwnPipeline:
    """A diffusers pipeline that draws by itself. classes: how many it knows, of one of classes. folder: of its files;
    pipeline: where it is in memory instead. The rest as `Source` has it."""

    name: str
    family: Family
    classes: int = 0
    folder: Path | None = None
    pipeline: Any = None
    scheduler: str | None = None

    @property
    def hub_id(self) -> str | None:
        return self.name if "/" in self.name else None

    @property
    def takes(self) -> str:
        return self.family.condition


def open_model(model: Any, architecture: Path | None = None, scheduler: Path | None = None) -> Source | OwnPipeline:
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
    name = path.resolve().name if Path(model).exists() else str(model)
    if path.is_dir():
        described, kind = inspection.describe(path), _class_of(path)
        classes = _classes(described.config)
        if kind in FAMILIES:
            return OwnPipeline(name, FAMILIES[kind], classes, path, scheduler=_scheduler_of(path, None))
        if _of_classes(described.network, described.config):
            made = _class_pipeline(path, scheduler)
            return OwnPipeline(name, FAMILIES[OF_CLASSES], classes, None, made, type(made.scheduler).__name__)
        _check(str(path), kind, described.network, described.config, set(described.others))
    elif path.suffix != ".ckpt":
        raise ArtifactError(f"{path}: a file of an unknown kind; what is taken: {TAKEN}")
    opened = pipelines.open_source(path, architecture, scheduler=scheduler)
    return Source(name, opened, pipelines.checksum(path), scheduler=_scheduler_of(path, scheduler))


def _pipeline_around(path: Path) -> Path:
    """The pipeline that a folder called ``unet`` or ``transformer`` is part of; any other path itself."""
    whole, of_network = path.resolve().parent, path.resolve().name in PARTS
    return whole if path.is_dir() and of_network and (whole / "model_index.json").is_file() else path


def _class_of(folder: Path) -> str | None:
    """The class of the pipeline in a folder; None where it holds a network alone."""
    index = folder / "model_index.json"
    return read_json(index).get("_class_name") if index.is_file() else None


def _of_pipeline(pipeline: Any) -> Source | OwnPipeline:
    parts = {name: part for name, part in pipeline.components.items() if part is not None}
    where = type(pipeline).__name__
    denoises = next((name for name in PARTS if name in parts), None)
    if denoises is None:
        raise ArtifactError(f"{where}: neither {' nor '.join(PARTS)} in it; what is taken: {TAKEN}")
    network = parts[denoises]
    kind = type(parts["scheduler"]).__name__ if "scheduler" in parts else None
    if network.config.get("quantization_config") is not None:
        raise ArtifactError(f"{where}: quantized already; expected a model in full precision")
    if where not in FAMILIES and _of_classes(type(network).__name__, network.config) and kind is not None:
        first_stage = next((parts[name] for name in _FIRST_STAGES if name in parts), None)
        pipeline = QuestClassPipeline(network, parts["scheduler"], first_stage)
    if (family := FAMILIES.get(type(pipeline).__name__)) is not None:
        return OwnPipeline(where, family, _classes(network.config), None, pipeline, kind)
    _check(where, where, type(network).__name__, network.config, set(parts))
    return Source(where, pipelines.of_pipeline(pipeline), scheduler=kind)


def _of_classes(network: str, config: Mapping[str, Any]) -> bool:
    """Whether diffusers has no pipeline for a U-Net because it is told classes by its own embedding."""
    return network == "UNet2DModel" and bool(config.get("num_class_embeds")) and not config.get("class_embed_type")


def _classes(config: Mapping[str, Any]) -> int:
    return config.get("num_class_embeds") or config.get("num_embeds_ada_norm") or 0


def _class_pipeline(folder: Path, scheduler: Path | None) -> Any:
    """The parts in ``folder``, a pipeline's or a U-Net's, as a pipeline of classes. Raises ArtifactError."""
    whole = (folder / "model_index.json").is_file()
    index = read_json(folder / "model_index.json") if whole else {"unet": ["diffusers", "UNet2DModel"]}
    place = scheduler or next(
        (file for part in ("scheduler", ".") if (file := folder / part / "scheduler_config.json").is_file()), None
    )
    if place is None:
        raise ArtifactError(
            f"{folder}: a U-Net alone does not say on which noise schedule it was trained; name its "
            "scheduler_config.json with --scheduler, or give the folder of its whole pipeline"
        )
    config = read_json(place)
    first_stage = next((name for name in _FIRST_STAGES if (index.get(name) or [None, None])[1]), None)
    parts = ["unet"] if first_stage is None else ["unet", first_stage]
    try:
        found = {
            part: getattr(diffusers, index[part][1]).from_pretrained(
                folder / part if (folder / part).is_dir() else folder, torch_dtype=torch.float32, local_files_only=True
            )
            for part in parts
        }
        schedule = getattr(diffusers, config["_class_name"]).from_config(config)
    except Exception as error:  # of many kinds: whatever the part of diffusers that failed raises
        raise ArtifactError(f"{folder}: diffusers cannot read it: {in_one_line(error)}") from error
    return QuestClassPipeline(found["unet"], schedule, found.get(first_stage or ""))


def _check(where: str, pipeline: str | None, network: str, config: Mapping[str, Any], others: set[str]) -> None:
    """Raises ArtifactError for what cannot be quantized from its files to a folder yet."""
    if network not in architectures.networks():
        raise ArtifactError(f"{where}: {architectures.unexplained(network)}. What is taken: {TAKEN}")
    if not network.startswith("UNet2D"):
        found = f"a {network} in a {pipeline}" if pipeline else f"a {network} without its pipeline"
        raise ArtifactError(
            f"{where}: {found} cannot be calibrated here; expected the folder of a whole pipeline of "
            f"{', '.join(FAMILIES)}. `quest inspect` says what its layers would become"
        )
    lacks = [what for part, what in _OTHER_PARTS.items() if part in others]
    lacks += [f"{what} ({key})" for key, what in _OTHER_CONDITIONS.items() if config.get(key)]
    if lacks:
        raise ArtifactError(
            f"{where}: {' and '.join(dict.fromkeys(lacks))} cannot be calibrated here in a "
            f"{pipeline or 'network without its pipeline'}. `quest inspect` says what its layers would become and how "
            f"large; what is quantized from its files: {TAKEN}"
        )


def _scheduler_of(path: Path, scheduler: Path | None) -> str | None:
    """The class of a model's own scheduler, as its files name it."""
    places = [scheduler] if scheduler else [path / "scheduler/scheduler_config.json", path / "scheduler_config.json"]
    found = next((place for place in places if place.is_file()), None)
    return None if found is None else read_json(found).get("_class_name")
