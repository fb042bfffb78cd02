"""A checkpoint of latent diffusion as a model: every weight looked up by the name that the released code gives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quest.artifacts import ArtifactError
from quest.diffusion.denoiser import Denoiser
from quest.diffusion.first_stage import FirstStage
from quest.sources.compvis.build import build_autoencoder, build_conditioner, build_schedule, build_unet
from quest.sources.compvis.config import Architecture
from quest.sources.compvis.names import (
    CLASSES,
    FIRST_STAGE,
    UNET,
    autoencoder_names,
    average_of,
    is_fused,
    stored_shapes,
    unet_names,
)
from quest.sources.weights import read_tensors

_UNUSED = ("first_stage_model.loss.", "first_stage_model.model_ema.")  # of training


def open_checkpoint(path: Path, architecture: Architecture, trusted: bool = False) -> Denoiser:
    """The model of a checkpoint, weights in the checkpoint's precision; trusted: see `read_tensors`.

    Raises ArtifactError for a file that cannot be read, holds anything but data, or does not fit ``architecture``.
    """
    state = read_state(path, trusted)
    try:
        return convert(state, architecture)
    except ValueError as error:
        raise ArtifactError(f"{path}: not a checkpoint of this architecture: {error}") from error


def read_state(path: Path, trusted: bool = False) -> dict[str, Tensor]:
    """The state dict of a checkpoint. Raises ArtifactError as `read_tensors` does."""
    content = read_tensors(path, trusted)
    state = content.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        found = sorted(map(str, content))[:5]
        raise ArtifactError(f"{path}: found keys {found}; expected a checkpoint with tensors under 'state_dict'")
    return state


def convert(state: Mapping[str, Tensor], architecture: Architecture) -> Denoiser:
    """A state dict as a model. Raises ValueError naming the first weight that is missing, misshapen or unknown."""
    if architecture.scale_by_std and "scale_factor" not in state:
        raise ValueError("scale_factor: missing; expected a number, since this model's latents are scaled by it")
    scale = _number(state["scale_factor"]) if "scale_factor" in state else architecture.scale_factor
    parts: list[tuple[nn.Module, Callable[[str], str]]] = [
        (build_unet(architecture), unet_names(architecture)),
        (build_autoencoder(architecture), autoencoder_names(architecture)),
    ]
    if architecture.n_classes:
        parts.append((build_conditioner(architecture), CLASSES.__add__))
    known = {old for network, name in parts for old, _ in stored_shapes(network, name)}
    for old in state:
        if old not in known and old.startswith((UNET, FIRST_STAGE, CLASSES)) and not old.startswith(_UNUSED):
            raise ValueError(f"{old}: found {tuple(state[old].shape)}, but the architecture has no such weight")
    schedule = build_schedule(architecture)
    _check_betas(state, schedule.betas)
    unet, autoencoder, *embedder = [_loaded(part, name, state, architecture.use_ema) for part, name in parts]
    conditioner = embedder[0] if embedder else None
    return Denoiser(unet, schedule, FirstStage(autoencoder, scale), conditioner)


def _check_betas(state: Mapping[str, Tensor], expected: Tensor) -> None:
    """Raises ValueError where the checkpoint was trained on another noise schedule than its configuration says."""
    found = state.get("betas", expected).float()
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-3, atol=0):
        raise ValueError(
            f"betas: found {len(found)}, from {found[0]:.5g} to {found[-1]:.5g}, but linear_start and linear_end make "
            f"{len(expected)}, from {expected[0]:.5g} to {expected[-1]:.5g}"
        )


def _number(tensor: Tensor) -> float:
    if tensor.numel() != 1:
        raise ValueError(f"scale_factor: found {tuple(tensor.shape)}, expected one number")
    return float(tensor)


def _loaded(network: Any, name: Callable[[str], str], state: Mapping[str, Tensor], averaged: bool) -> Any:
    """``network`` with its weights from ``state``; averaged: a noise predictor with their moving averages."""
    found = {}
    for old, shape in stored_shapes(network, name):
        key = average_of(old) if averaged and old.startswith(UNET) else old
        if key not in state:
            raise ValueError(f"{key}: missing; expected {shape}")
        if tuple(state[key].shape) != shape:
            raise ValueError(f"{key}: found {tuple(state[key].shape)}, expected {shape}")
        found[old] = state[key]
    tensors = {}
    for new, target in network.state_dict().items():
        tensor = found[name(new)]
        if is_fused(name(new)):
            attention, _, part = new.rpartition(".")[0].rpartition(".to_")
            # Rows come head by head, each with its query, key and value (the released code's "legacy" order).
            of_head = tensor.view(network.get_submodule(attention).heads, 3, -1, *tensor.shape[1:])
            tensor = of_head[:, "qkv".index(part)].flatten(0, 1)
        tensors[new] = tensor.reshape(target.shape)
    network.load_state_dict(tensors, assign=True)
    return network.eval().requires_grad_(False)
