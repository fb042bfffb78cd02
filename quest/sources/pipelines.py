"""Full-precision models as others publish them: diffusers folders, the same on the hub, and CompVis checkpoints.

Every loader gives a `Denoiser`; once it is saved as a model artifact, nothing else knows where it came from.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors import SafetensorError, safe_open

from quest import architectures
from quest.artifacts import ArtifactError
from quest.diffusion.conditioners import TextEncoder
from quest.diffusion.denoiser import Denoiser
from quest.diffusion.first_stage import FirstStage
from quest.sources import compvis

_FIRST_STAGES = {each.__name__: each for each in (VQModel, AutoencoderKL)}
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# Of a published pipeline: not the same weights again in other formats, nor what no sample needs.
_FETCHED = ["*.json", "*.txt", "*.safetensors"]
_NOT_FETCHED = ["safety_checker/*", "feature_extractor/*", "*.fp16.*", "*non_ema*", "*-ema-*", "v1-*"]


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


def open_source(path: Path, architecture: Path | None = None) -> Denoiser:
    """The model in ``path``, weights in the precision that they have there, on the CPU.

    path: a diffusers folder (pixel-space DDPM, latent diffusion, Stable Diffusion) or a CompVis ``.ckpt``, whose
    hyper-parameters are in the file ``architecture``. Raises ArtifactError when it cannot be read or does not fit.
    """
    if path.is_dir():
        return open_folder(path)
    if architecture is None:
        raise ArtifactError(
            f"{path}: a checkpoint does not say what it is of; name its architecture, one of config/models/*.yaml"
        )
    return compvis.open_checkpoint(path, compvis.read_architecture(architecture))


def checksum(path: Path) -> str:
    """sha256 of a file; of a folder, of the names and checksums of its weights and configuration files."""
    if path.is_dir():
        files = sorted(file for pattern in _FETCHED for file in path.rglob(pattern))
        lines = [f"{checksum(file)}  {file.relative_to(path).as_posix()}\n" for file in files]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_folder(folder: Path) -> Denoiser:
    """A folder that a diffusers pipeline was saved to, of one of the networks that quest knows."""
    index = _json(folder / "model_index.json")
    denoiser = _network(folder, "transformer" if "transformer" in index else "unet", index, architectures.networks())
    schedule: Any = DDIMScheduler.from_config(_json(_place(folder, "scheduler") / "scheduler_config.json"))
    # The published samplers do not clip the predicted image at every step, as DDPM does.
    schedule.register_to_config(clip_sample=False)
    latent = next((part for part in ("vae", "vqvae") if part in index), None)
    stage = None
    if latent is not None:
        autoencoder = _network(folder, latent, index, _FIRST_STAGES)
        stage = FirstStage(autoencoder, autoencoder.config.scaling_factor)
    encoder = _text_encoder(folder) if "text_encoder" in index else None
    if architectures.of(denoiser).conditional and encoder is None:
        raise ArtifactError(f"{folder}: its network takes a context, but model_index.json names no text_encoder")
    return Denoiser(denoiser, schedule, stage, encoder)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(name, allow_patterns=_FETCHED, ignore_patterns=_NOT_FETCHED))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(
            f"{name}: not a path here, and the hub did not give it ({reason}). Where there is network, run "
            f"`hf download {name} --local-dir {name}`, then put that folder at {Path(name).resolve()}"
        ) from error


def _network(folder: Path, part: str, index: dict[str, Any], known: Mapping[str, Any]) -> Any:
    """One network of a pipeline, of the classes ``known`` by name. Raises ArtifactError naming what does not fit."""
    name = index.get(part, [None, None])[1]
    if name not in known:
        raise ArtifactError(f"{folder}: {part} is {name!r}; known are {', '.join(known)}")
    place = _place(folder, part)
    weights = _weights(place, "diffusion_pytorch_model")
    config = _json(place / "config.json")
    try:
        network, found = known[name].from_pretrained(
            place, torch_dtype=_dtype(weights), local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # of many kinds: diffusers raises whatever the part of it that failed raises
        raise ArtifactError(f"{weights}: does not fit {place / 'config.json'}, or is damaged: {error}") from error
    for problem in ("missing_keys", "unexpected_keys"):
        if found[problem]:
            key, what = found[problem][0], problem.removesuffix("_keys")
            raise ArtifactError(f"{weights}: {key}: {what}; expected the weights of {config.get('_class_name')}")
    return network.eval().requires_grad_(False)


def _text_encoder(folder: Path) -> TextEncoder:
    from transformers import AutoTokenizer, CLIPTextModel

    place = _place(folder, "text_encoder")
    weights = _weights(place, "model", "pytorch_model")
    words = _place(folder, "tokenizer")
    for file in ("vocab.json", "merges.txt"):
        if not (words / file).is_file() and not (words / "tokenizer.json").is_file():
            raise ArtifactError(f"{words / file}: no such file; the folder is incomplete, fetch it again")
    try:
        read: Any = CLIPTextModel.from_pretrained
        model, found = read(place, dtype=_dtype(weights), local_files_only=True, output_loading_info=True)
        tokenizer: Any = AutoTokenizer.from_pretrained(words, local_files_only=True)
    except Exception as error:  # as above, of transformers
        raise ArtifactError(f"{place}: not a CLIP text model, or damaged: {error}") from error
    if found["missing_keys"]:
        raise ArtifactError(f"{weights}: {sorted(found['missing_keys'])[0]}: missing; expected a CLIP text model")
    length = model.config.max_position_embeddings
    words_of: Any = tokenizer.backend_tokenizer
    words_of.enable_truncation(length)
    words_of.enable_padding(length=length, pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
    return TextEncoder(model.eval().requires_grad_(False), words_of)


def _place(folder: Path, part: str) -> Path:
    """Where a pipeline keeps a part: in a folder of its own, or, of pixel-space models on the hub, at the top."""
    return folder / part if (folder / part).is_dir() else folder


def _weights(place: Path, *names: str) -> Path:
    files = [place / f"{name}.{suffix}" for suffix in ("safetensors", "bin") for name in names]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise ArtifactError(f"{files[0]}: no such file; the folder is incomplete, fetch it again")
    return file


def _dtype(weights: Path) -> torch.dtype:
    """Precision of the weights in a file. Raises ArtifactError when it cannot be read as plain tensors."""
    if weights.suffix == ".bin":
        return next(iter(compvis.read_tensors(weights).values())).dtype
    try:
        with safe_open(weights, framework="pt") as file:
            return file.get_slice(next(iter(file.keys())))[:1].dtype
    except (SafetensorError, StopIteration, OSError) as error:
        raise ArtifactError(f"{weights}: cannot be read ({error}); fetch it again") from error


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except OSError as error:
        raise ArtifactError(
            f"{file}: {error.strerror}; expected the whole folder of a diffusers pipeline, fetch it again"
        ) from error
    except ValueError as error:
        raise ArtifactError(f"{file}: not valid JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{file}: found {type(content).__name__}, expected an object; fetch it again")
    return content
