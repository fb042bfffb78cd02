"""A quantized model as a folder that diffusers' ``from_pretrained`` loads: packed weights, tables, a model card."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from safetensors.torch import save

from quest import architectures
from quest.artifacts import ArtifactError, write_bytes
from quest.deploy import card
from quest.deploy.checkpoints import Checkpoint
from quest.deploy.packed import assembly, seal
from quest.deploy.packed.description import PARTS, Description
from quest.deploy.packed.pipelines import NAME as LATENT
from quest.deploy.packed.pipelines import OF_TRANSFORMERS, QuestClassEmbedding
from quest.deploy.quantized import QuantizedModel
from quest.diffusion.conditioners import ClassEmbedder, TextEncoder
from quest.diffusion.denoiser import Denoiser
from quest.diffusion.first_stage import FirstStage
from quest.quantization import mixed
from quest.sources.weights import read_json

WEIGHTS = "diffusion_pytorch_model.safetensors"
_MODELS = "quest.deploy.packed.pipelines"


def export(
    model: QuantizedModel,
    output: str | PathLike[str],
    *,
    base_model: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Path:
    """Write ``model`` as a diffusers pipeline, whole or not at all; returns its folder.

    After `import quest`, ``DiffusionPipeline.from_pretrained(output)`` loads it. base_model: what it was made of, a hub
    id or another name, for the model card. metrics: a row of `quest measure`, of which the card says how close its
    images are to full precision. force: replace a pipeline that is there already.
    Raises ArtifactError when ``output`` holds something, or cannot be written; ValueError for a model that has no
    packed form.
    """
    output = Path(output)
    check_parts(model.around)
    with whole(output, force) as folder:
        description = write_pipeline(folder, model)
        write_bytes(folder / "README.md", described(folder, model, description, base_model, metrics).encode())
    return output


@torch.no_grad()
def write_pipeline(folder: Path, model: QuantizedModel) -> Description:
    """Write the parts of a pipeline into ``folder``, an empty one; returns the description of its packed network."""
    parts = _Folder(folder)
    description = _network(parts, model)
    _others(parts, model)
    parts.write_index()
    return description


def described(
    folder: Path,
    model: QuantizedModel,
    description: Description,
    base_model: str | None,
    metrics: Mapping[str, Any] | None,
    called: str | None = None,
    account: Mapping[str, Any] | None = None,
    use: card.Use | None = None,
) -> str:
    """The model card of a folder that `write_pipeline` or `write_around` wrote, Markdown; see `card.text`. account: the
    model's, where it is known."""
    size = weights_of(folder).stat().st_size
    return card.text(model, description, account or model.account(), base_model, metrics, size, called, use)


def weights_of(folder: Path) -> Path:
    """The file of packed weights in a pipeline's folder."""
    return next(folder / part / WEIGHTS for part in PARTS if (folder / part).is_dir())


def check_parts(around: Denoiser) -> None:
    """Raises ValueError for a model whose parts make no pipeline that is written here."""
    network, conditioner, stage = around.network, around.conditioner, around.first_stage
    kind, conditional = type(network).__name__, architectures.of(network).conditional
    transformer = isinstance(network, DiTTransformer2DModel)
    if not (transformer or kind.startswith("UNet2D")) or (conditional and conditioner is None):
        raise ValueError(
            f"no pipeline is written here for a {kind} with its conditions; expected a U-Net that is told a timestep "
            "and at most one context, or a DiT of classes"
        )
    if isinstance(conditioner, TextEncoder) and (stage is None or not isinstance(stage.network, AutoencoderKL)):
        raise ValueError("a model of prompts needs a KL first stage to be a StableDiffusionPipeline")
    if conditioner is not None and stage is None:
        raise ValueError("a model of classes in pixel space has no pipeline; expected one of latents")


class _Folder:
    """The folder of a pipeline while it is written: its parts, and the index of their classes."""

    def __init__(self, path: Path):
        self.path = path
        self.pipeline = "DDIMPipeline"
        self.index: dict[str, Any] = {}

    def add(self, part: str, value: Any, library: str = "diffusers") -> None:
        """Write a part as its own library does."""
        value.save_pretrained(self.path / part)
        self.index[part] = [library, type(value).__name__]

    def write_index(self) -> None:
        head = {"_class_name": self.pipeline, "_diffusers_version": diffusers.__version__}
        _write_json(self.path / "model_index.json", head | self.index)


def _network(folder: _Folder, model: QuantizedModel) -> Description:
    quantized, around = model.network, model.around
    correction = model.checkpoint.correction
    prediction = around.sampler(model.sampler).calls()[0].parametrization
    if correction is not None and prediction.kind != "epsilon":
        raise ValueError(
            f"{model!r}: its sampler corrects the predicted noise, but the network predicts {prediction.kind}; "
            "expected a model that predicts epsilon, or a method without a correction"
        )
    timesteps = around.sampler(model.sampler).timesteps.tolist()
    network: Any = quantized.network
    config = {key: value for key, value in network.config.items() if not key.startswith("_")}
    part = "transformer" if isinstance(network, DiTTransformer2DModel) else "unet"
    description = write_network(folder.path / part, model.checkpoint, config, timesteps)
    folder.index[part] = ["diffusers", type(network).__name__]
    return description


def write_network(
    place: Path, checkpoint: Checkpoint, config: Mapping[str, Any], timesteps: Sequence[int]
) -> Description:
    """Write a packed network and its config.json into the folder ``place``. config: diffusers', of the network in full
    precision. timesteps: that its sampling steps are at."""
    quantized = checkpoint.network
    network: Any = quantized.network
    fields, tensors = assembly.take_apart(quantized, timesteps, checkpoint.correction)
    made = {"inputs": checkpoint.inputs, "checkpoint": checkpoint.sha256, "seed": checkpoint.seed}
    if (chosen := checkpoint.notes.get(mixed.NAME)) is not None:
        made |= {"asked": {"most": chosen["most"], **chosen["wish"]}}
    heads = _heads_beyond(type(network).__name__, config, quantized.architecture.heads())
    description = Description(
        bits=mixed.label(quantized),
        heads=heads,
        method=checkpoint.method,
        sampler=checkpoint.sampler.model_dump(mode="json", exclude_defaults=True),
        made=made,
        **fields,
    )
    plain = description.plain()
    head = {"_class_name": type(network).__name__, "_diffusers_version": diffusers.__version__}
    _write_json(place / "config.json", head | dict(config) | {"quantization_config": plain})
    sealed = {"format": "pt", seal.KEY: seal.digest(tensors, plain)}
    write_bytes(place / WEIGHTS, save(tensors, metadata=sealed))
    return description


@torch.no_grad()
def write_around(
    folder: Path, source: Path, part: str, checkpoint: Checkpoint, timesteps: Sequence[float]
) -> Description:
    """Write the pipeline of the folder ``source`` into ``folder``, its ``part`` packed and all others as they are."""
    index = read_json(source / "model_index.json")
    for name, of in index.items():
        if name != part and isinstance(of, list) and len(of) == 2 and of[1] is not None:
            shutil.copytree(source / name, folder / name)
    shutil.copyfile(source / "model_index.json", folder / "model_index.json")
    config = {key: value for key, value in read_json(source / part / "config.json").items() if not key.startswith("_")}
    return write_network(folder / part, checkpoint, config, [round(each) for each in timesteps])


def _heads_beyond(name: str, config: Mapping[str, Any], heads: Mapping[str, int]) -> dict[str, int]:
    """The heads of attentions that the network's own config does not say."""
    with torch.device("meta"):
        own = architectures.of(architectures.build(name, config)).heads()
    return {attention: count for attention, count in heads.items() if own[attention] != count}


def _others(folder: _Folder, model: QuantizedModel) -> None:
    """Scheduler, first stage and condition, in full precision, and the class of pipeline that they make."""
    around = model.around
    scheduler: Any = around.scheduler
    if model.sampler.kind == "plms":
        scheduler = PNDMScheduler.from_config(scheduler.config, skip_prk_steps=True)
    folder.add("scheduler", scheduler)
    conditioner = around.conditioner
    if isinstance(conditioner, TextEncoder):
        _text(folder, around, conditioner)
    elif around.first_stage is not None:
        folder.pipeline = OF_TRANSFORMERS if "transformer" in folder.index else LATENT
        folder.add("vqvae", _scaled(around.first_stage))
        if isinstance(conditioner, ClassEmbedder):
            table = conditioner.embedding
            embedding: Any = QuestClassEmbedding(conditioner.classes, table.embedding_dim)
            embedding.embedding.weight.copy_(table.weight)
            folder.add("class_embedding", embedding, _MODELS)


def _text(folder: _Folder, around: Denoiser, conditioner: TextEncoder) -> None:
    assert around.first_stage is not None  # checked
    from transformers import PreTrainedTokenizerFast

    folder.pipeline = "StableDiffusionPipeline"
    folder.add("vae", _scaled(around.first_stage))
    folder.add("text_encoder", conditioner.model, "transformers")
    padding: Any = conditioner.tokenizer.padding
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=conditioner.tokenizer,
        pad_token=padding["pad_token"],
        model_max_length=conditioner.model.config.max_position_embeddings,
    )
    folder.add("tokenizer", tokenizer, "transformers")
    folder.index |= {
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    }


def _scaled(stage: FirstStage) -> Any:
    """The first stage's network, whose configuration says its scale factor."""
    network: Any = stage.network
    network.register_to_config(scaling_factor=stage.scale_factor)
    return network


@contextmanager
def whole(output: Path, force: bool) -> Iterator[Path]:
    """A temporary folder that becomes ``output`` when the block ends well; removed otherwise."""
    check_free(output, force)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}.", suffix=".partial"))
    except OSError as error:
        raise ArtifactError(f"{output}: could not be written ({error.strerror or error})") from error
    try:
        yield folder
        folder.chmod(0o755)
        check_free(output, force)
        if output.is_dir() and any(output.iterdir()):
            old = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}.", suffix=".old"))
            output.replace(old / output.name)
            folder.replace(output)
            shutil.rmtree(old)
        else:
            os.replace(folder, output)
    except OSError as error:
        raise ArtifactError(f"{output}: could not be written ({error.strerror or error}); nothing changed") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_free(output: Path, force: bool) -> None:
    """Raises ArtifactError where ``output`` holds something that may not be replaced."""
    if not output.exists():
        return
    if not output.is_dir():
        raise ArtifactError(f"{output}: a file is there; expected a folder to write, or none")
    if not any(output.iterdir()):
        return
    if not force:
        raise ArtifactError(f"{output}: the folder is not empty; choose another, or --force to replace a pipeline")
    if not (output / "model_index.json").is_file():
        raise ArtifactError(f"{output}: holds no pipeline (no model_index.json), so --force does not replace it")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())
