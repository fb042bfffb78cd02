"""Full-precision models as others publish them: diffusers folders, the same on the hub, and CompVis checkpoints.

Every loader gives a `Denoiser`; once it is saved as a model artifact, nothing else knows where it came from.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel

from quest.architectures.unet import UNet
from quest.artifacts import ArtifactError
from quest.diffusion.conditioners import TextEncoder
from quest.diffusion.denoiser import Denoiser
from quest.diffusion.first_stage import FirstStage
from quest.sources import compvis, fit, schedules
from quest.sources.weights import Weights, find, in_one_line, read_json

log = logging.getLogger(__name__)

_UNETS = {each.__name__: each for each in UNet.networks}  # whose pipelines are read
_FIRST_STAGES = {each.__name__: each for each in (VQModel, AutoencoderKL)}
_LATENT = ("vae", "vqvae")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_CONTENT = ["*.json", "*.txt", "*.model", "*.safetensors", "*.bin"]
# Of a published pipeline: not the same weights again in other formats, nor what no sample needs; halves and torch's own
# format where there is nothing else.
_FETCHED, _FETCHED_ELSE = ["*.json", "*.txt", "*.model", "*.safetensors"], _CONTENT
_NOT_FETCHED = ["safety_checker/*", "feature_extractor/*", "*non_ema*", "*-ema-*", "v1-*"]
_NOT_FETCHED += ["sd_xl_*", "sd3*", "flux1-*", "text_encoders/*"]  # all parts once more, in single files
_HALVES = ["*.fp16.*", "*.fp16-*", "*.bf16.*", "*.bf16-*"]
_PARTS = {"unet", "scheduler", "vae", "vqvae", "text_encoder", "tokenizer"}
_UNUSED = {"safety_checker", "feature_extractor", "requires_safety_checker"}
_NOT_HERE = {"text_encoder_2": "SDXL's second encoder", "controlnet": "control images", "prior": "a prior"}
_STEM = "diffusion_pytorch_model"
_OF_EVERY_CONFIG = {"architectures", "gradient_checkpointing", "dropout", "torch_dtype", "dtype", "model_type"}


def locate(source: str, architecture: Path | None = None) -> Path:
    """Where a source lies: the path itself, or the local copy of a hub id, downloaded if need be.

    Raises ArtifactError saying what to fetch and where to put it.
    """
    path = Path(source)
    if path.exists():
        return path
    if architecture is None and _HUB_ID.fullmatch(source) and path.suffix != ".ckpt":
        return _download(source)
    url = compvis.read_architecture(architecture).url if architecture else ""
    what = "the checkpoint" if path.suffix == ".ckpt" else "the folder"
    raise ArtifactError(
        f"{source}: no such file; put {what} of the full-precision model there"
        + (f" (published at {url}; an archive is to be unpacked)" if url else "")
    )


def open_source(
    path: Path, architecture: Path | None = None, trusted: bool = False, scheduler: Path | None = None
) -> Denoiser:
    """The model in ``path``, on the CPU; each network in the precision that its weights have there.

    path: a diffusers folder (pixel-space DDPM, latent diffusion, Stable Diffusion), that of a U-Net alone, or a CompVis
    ``.ckpt``, whose hyper-parameters are in the file ``architecture``. scheduler: of a U-Net alone, its
    scheduler_config.json. trusted: its checksum is as it should be (see `read_tensors`).
    Raises ArtifactError when it cannot be read, its parts do not fit together, or it is of a kind unknown here.
    """
    if path.is_dir() and is_network(path):
        model = open_network(path, scheduler, trusted)
    elif path.is_dir():
        model = open_folder(path, trusted)
    elif architecture is None:
        raise ArtifactError(
            f"{path}: a checkpoint does not say what it is of; name its architecture, one of config/models/*.yaml"
        )
    else:
        model = compvis.open_checkpoint(path, compvis.read_architecture(architecture), trusted)
    fit.check_parts(model, str(path))
    return model


def checksum(path: Path) -> str:
    """sha256 of a file; of a folder, of the names and checksums of its weights and configuration files."""
    if path.is_dir():
        files = sorted(file for pattern in _CONTENT for file in path.rglob(pattern))
        lines = [f"{checksum(file)}  {file.relative_to(path).as_posix()}\n" for file in files]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_folder(folder: Path, trusted: bool = False) -> Denoiser:
    """A folder that a diffusers pipeline was saved to, of one of the networks that quest knows."""
    index = {part: of for part, of in read_json(folder / "model_index.json").items() if _is_there(part, of)}
    _check_parts_of(folder, index)
    place = _place(folder, "scheduler") / "scheduler_config.json"
    schedule = schedules.training_schedule(read_json(place), place, _class_of(index, "scheduler"))
    unet = _network(folder, "unet", index, _UNETS, trusted)
    latent = next((part for part in _LATENT if part in index), None)
    stage = None
    if latent is not None:
        config = read_json(_place(folder, latent) / "config.json")
        stage = _first_stage(_network(folder, latent, index, _FIRST_STAGES, trusted), config)
    encoder = _text_encoder(folder, trusted) if "text_encoder" in index else None
    return Denoiser(unet, schedule, stage, encoder)


def is_network(folder: Path) -> bool:
    """Whether a folder is that of a network alone, without the index of a pipeline."""
    return (folder / "config.json").is_file() and not (folder / "model_index.json").is_file()


def open_network(folder: Path, scheduler: Path | None = None, trusted: bool = False) -> Denoiser:
    """A U-Net's own folder, with the schedule that it was trained on in ``scheduler``, or beside its weights.

    Raises ArtifactError where no schedule is named: a network does not say how much noise each of its timesteps has.
    """
    place = scheduler or folder / "scheduler_config.json"
    if not place.is_file():
        raise ArtifactError(
            f"{folder}: a U-Net alone does not say on which noise schedule it was trained, and {place} is not there; "
            "name its scheduler_config.json with --scheduler, or give the folder of its whole pipeline"
        )
    schedule = schedules.training_schedule(read_json(place), place)
    index = {"unet": [None, read_json(folder / "config.json").get("_class_name")]}
    return Denoiser(_network(folder, "unet", index, _UNETS, trusted), schedule)


def of_pipeline(pipeline: Any) -> Denoiser:
    """The model of a diffusers pipeline in memory, like that of its folder; its networks are shared, not copied.

    Raises ArtifactError when it is of kinds that quest does not know, or its parts do not fit together.
    """
    where, parts = "the pipeline", {name: part for name, part in pipeline.components.items() if part is not None}
    index = {name: [None, type(part).__name__] for name, part in parts.items()}
    _check_parts_of(where, index)
    # Without the private list of values that nobody chose: they stand all the same, as they do in a folder.
    schedule = {key: value for key, value in parts["scheduler"].config.items() if not key.startswith("_")}
    schedule = schedules.training_schedule(schedule, where, type(parts["scheduler"]).__name__)
    _check_known(where, "unet", _class_of(index, "unet"), _UNETS)
    unet = parts["unet"]
    _check_unet(type(unet), unet.config, where)
    stage, latent = None, next((part for part in _LATENT if part in parts), None)
    if latent is not None:
        _check_known(where, latent, _class_of(index, latent), _FIRST_STAGES)
        config = parts[latent].config
        given = {key: value for key, value in config.items() if key not in config.get("_use_default_values", ())}
        stage = _first_stage(parts[latent], given)
    encoder = _with_tokenizer(parts["text_encoder"], parts["tokenizer"]) if "text_encoder" in parts else None
    model = Denoiser(unet, schedule, stage, encoder)
    fit.check_parts(model, where)
    return model


def _is_there(part: str, of: Any) -> bool:
    """Whether an entry of model_index.json is a part that the pipeline has: [library, class], not [null, null]."""
    return not part.startswith("_") and isinstance(of, list) and len(of) == 2 and of[1] is not None


def _class_of(index: Mapping[str, Any], part: str) -> str | None:
    return index[part][1] if part in index else None


def _check_parts_of(folder: Path | str, index: Mapping[str, Any]) -> None:
    """Raises ArtifactError for a pipeline with a part that quest has not; warns of those that it does not know."""
    for part, what in _NOT_HERE.items():
        if part in index:
            raise ArtifactError(f"{folder}: {part} is {what}; expected a U-Net of at most one text encoder")
    if (encoder := _class_of(index, "text_encoder")) not in (None, "CLIPTextModel"):
        raise ArtifactError(f"{folder}: text_encoder is {encoder!r}; known is CLIPTextModel")
    if unknown := sorted(set(index) - _PARTS - _UNUSED):
        log.warning("%s: parts that are not known here, and not used: %s", folder, ", ".join(unknown))


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = Path(snapshot_download(name, allow_patterns=_FETCHED, ignore_patterns=[*_NOT_FETCHED, *_HALVES]))
        if not any(folder.rglob(f"{_STEM}*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=_FETCHED_ELSE, ignore_patterns=_NOT_FETCHED))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(
            f"{name}: not a path here, and the hub did not give it ({reason}). Where there is network, run "
            f"`hf download {name} --local-dir {name}`, then put that folder at {Path(name).resolve()}"
        ) from error
    return folder


def _network(folder: Path, part: str, index: Mapping[str, Any], known: Mapping[str, Any], trusted: bool) -> Any:
    """One network of a pipeline. Raises ArtifactError naming what is missing or does not fit."""
    name = _class_of(index, part)
    architecture, place = _check_known(folder, part, name, known), _place(folder, part)
    weights = find(place, _STEM)
    config = _config(place / "config.json", architecture)
    if part == "unet":
        _check_unet(architecture, config, place / "config.json")
    try:
        network, found = architecture.from_pretrained(
            place, **_how(weights), torch_dtype=weights.dtype(trusted), local_files_only=True, output_loading_info=True
        )
    except ArtifactError:
        raise
    except Exception as error:  # of many kinds: diffusers raises whatever the part of it that failed raises
        raise ArtifactError(
            f"{weights.files[0]}: does not fit {place / 'config.json'}, or is damaged: {in_one_line(error)}"
        ) from error
    for problem in ("missing_keys", "unexpected_keys"):
        if found[problem]:
            key, what = found[problem][0], problem.removesuffix("_keys")
            raise ArtifactError(f"{weights.files[0]}: {key}: {what}; expected the weights of {name}")
    if part == "unet":
        network.register_to_config(sample_size=fit.square(network.config.sample_size))
    return network.eval().requires_grad_(False)


def _check_known(where: Path | str, part: str, name: str | None, known: Mapping[str, Any]) -> Any:
    """The class of a network by its name. Raises ArtifactError for one that is not known."""
    if name is None or name not in known:
        raise ArtifactError(f"{where}: {part} is {name!r}; known are {', '.join(known)}")
    return known[name]


def _check_unet(architecture: type, config: Mapping[str, Any], file: Path | str) -> None:
    try:
        fit.check_unet(architecture, config, str(file))
    except (TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{file}: a value is of the wrong kind ({in_one_line(error)}); fetch it again") from error


def _first_stage(network: Any, given: Mapping[str, Any]) -> FirstStage:
    """given: the fields of its configuration that are not left to their defaults."""
    # Latents of a VQ model are not scaled unless it says so; diffusers' default is that of Stable Diffusion's KL model.
    default = 1.0 if isinstance(network, VQModel) else network.config.scaling_factor
    return FirstStage(network, given.get("scaling_factor", default))


def _config(file: Path, architecture: Any) -> dict[str, Any]:
    """A network's configuration with its defaults; fields that its class does not have are named in a warning."""
    given = read_json(file)
    parameters = inspect.signature(architecture.__init__).parameters
    if unknown := [key for key in given if key not in parameters and not key.startswith("_")]:
        log.warning("%s: fields that are not known here, and not used: %s", file, ", ".join(unknown))
    return {name: each.default for name, each in parameters.items() if name != "self"} | given


def _how(weights: Weights) -> dict[str, Any]:
    """What tells diffusers and transformers to read these weights and no others."""
    return {"variant": weights.variant, "use_safetensors": weights.safe}


def _text_encoder(folder: Path, trusted: bool) -> TextEncoder:
    from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

    place = _place(folder, "text_encoder")
    weights = find(place, "model", "pytorch_model")
    words = _place(folder, "tokenizer")
    for file in ("vocab.json", "merges.txt"):
        if not (words / file).is_file() and not (words / "tokenizer.json").is_file():
            raise ArtifactError(f"{words / file}: no such file; the folder is incomplete, fetch it again")
    given = read_json(place / "config.json")
    if given.get("use_attention_mask"):
        raise ArtifactError(f"{place / 'config.json'}: use_attention_mask is true; expected an encoder without a mask")
    known = {*CLIPTextConfig().to_dict(), *_OF_EVERY_CONFIG}
    if unknown := [key for key in given if key not in known and not key.startswith("_")]:
        log.warning("%s: fields that are not known here: %s", place / "config.json", ", ".join(unknown))
    dtype = weights.dtype(trusted)
    try:
        read: Any = CLIPTextModel.from_pretrained
        model, found = read(place, **_how(weights), dtype=dtype, local_files_only=True, output_loading_info=True)
        tokenizer: Any = AutoTokenizer.from_pretrained(words, local_files_only=True)
    except Exception as error:  # as above, of transformers
        raise ArtifactError(f"{place}: not a CLIP text model, or damaged: {in_one_line(error)}") from error
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])[0]
        raise ArtifactError(f"{weights.files[0]}: {missing}: missing; expected a CLIP text model")
    return _with_tokenizer(model.eval().requires_grad_(False), tokenizer)


def _with_tokenizer(model: Any, tokenizer: Any) -> TextEncoder:
    """A text encoder of transformers' model and tokenizer, which stay as they are."""
    length = min(model.config.max_position_embeddings, tokenizer.model_max_length)
    words_of: Any = copy.deepcopy(tokenizer.backend_tokenizer)
    words_of.enable_truncation(length)
    words_of.enable_padding(length=length, pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
    return TextEncoder(model, words_of)


def _place(folder: Path, part: str) -> Path:
    """Where a pipeline keeps a part: in a folder of its own, or, of pixel-space models on the hub, at the top."""
    return folder / part if (folder / part).is_dir() else folder
