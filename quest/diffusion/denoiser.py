"""The denoiser: one interface over pixel-space and latent models, unconditional, class- and text-conditional.

Networks, schedules and autoencoders are diffusers'. What is added here is that a sampling step travels with every
prediction, because a quantized network keeps activation scales for groups of steps, and guidance.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from quest import architectures
from quest.architectures import Inputs
from quest.artifacts import ArtifactError, Manifest, load_tensors, save_tensors
from quest.config.sampling import SamplerSettings
from quest.diffusion import conditioners, first_stage
from quest.diffusion.conditioners import Conditioner
from quest.diffusion.finite import finite
from quest.diffusion.first_stage import FirstStage
from quest.diffusion.guidance import Guidance
from quest.diffusion.samplers import Call, Predict, Sampler
from quest.graphs import Replayed


@dataclass
class Denoiser:
    """A full-precision model.

    network: noise predictor in eval mode, of an architecture that the library knows (`quest.architectures`).
    scheduler: diffusers' DDIM scheduler on the model's training schedule.
    first_stage: decodes the latents of a latent model. conditioner: makes the context of a conditional one.
    sha256: of the model artifact, recorded by everything made from it.
    """

    network: nn.Module
    scheduler: DDIMScheduler
    first_stage: FirstStage | None = None
    conditioner: Conditioner | None = None
    sha256: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the network denoises: an image in [-1, 1], or latents."""
        return architectures.of(self.network).shape

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def condition(self) -> str | None:
        """What it is conditioned on: "class", "text" or None."""
        return None if self.conditioner is None else self.conditioner.kind

    def copy(self, device: torch.device | str, dtype: torch.dtype | None = torch.float32) -> Denoiser:
        """The same with modules of its own, as ``dtype`` (None: as they are) on ``device``, in eval mode."""
        parts = {"network": self.network, "conditioner": self.conditioner}
        copies = {name: _ready(copy.deepcopy(part), device, dtype) for name, part in parts.items() if part is not None}
        if self.first_stage is not None:
            autoencoder = _ready(copy.deepcopy(self.first_stage.network), device, dtype)
            copies["first_stage"] = FirstStage(autoencoder, self.first_stage.scale_factor)
        return replace(self, **copies)

    def sampler(self, settings: SamplerSettings) -> Sampler:
        """The sampler on this model's schedule."""
        return Sampler(self.scheduler, settings)

    @torch.no_grad()
    def guidance(self, conditions: Sequence[Any] | None, scale: float) -> Guidance | None:
        """What the network is told beside the timestep for samples of these ``conditions``; None if unconditional.

        Raises ValueError when the model needs conditions and there are none, or the other way round.
        """
        if (conditions is None) != (self.conditioner is None):
            found, expected = ("no condition", "one") if conditions is None else ("a condition", "none")
            raise ValueError(f"condition: found {found} in the protocol, but the model takes {expected}")
        if conditions is None or self.conditioner is None:
            return None
        return Guidance(self.conditioner(conditions), self.conditioner([None]), scale)

    def decode(self, x: Tensor) -> Tensor:
        """Finished samples to images (N, channels, H, W) around [-1, 1]."""
        return x if self.first_stage is None else self.first_stage.decode(x)

    @torch.no_grad()
    def example(self) -> tuple[Any, ...]:
        """Arguments of one call of the network with a batch of 1."""
        context = None if self.conditioner is None else self.conditioner([None])
        return architectures.of(self.network).example(context)


class Outputs:
    """What a network gives for (x, timesteps) under guidance, in one batch.

    replayed: whether its calls are replayed on a GPU; only where the network stays as it is, and nothing is trained.
    """

    def __init__(self, network: nn.Module, replayed: bool = False):
        self.network = network
        self._call = Replayed(self._plain) if replayed else None

    def __call__(self, x: Tensor, timesteps: Tensor, guidance: Guidance | None) -> Tensor:
        if guidance is None:
            return self._output(x, timesteps)
        halves = guidance.halves()
        both = torch.cat([x] * len(halves)), timesteps.repeat(len(halves)), torch.cat(halves)
        return guidance.join(self._output(*both).chunk(len(halves)))

    def _output(self, *told: Tensor) -> Tensor:
        (output,) = self._plain(*told) if self._call is None else self._call(*told, variant=self._mode())
        return output

    def _plain(self, *told: Tensor) -> tuple[Tensor]:
        return (architectures.predict(self.network, Inputs(*told)),)  # type: ignore  # x, timesteps, perhaps a context

    def _mode(self) -> Any:
        return getattr(self.network, "mode", None)


def predictor(outputs: Outputs | nn.Module, guidance: Guidance | None = None) -> Predict:
    """A network as a function of (x, call); tells a quantized network its step first.

    Raises ValueError, naming the step, for a prediction that is not finite.
    """
    if isinstance(outputs, nn.Module):
        outputs = Outputs(outputs)
    set_step = getattr(outputs.network, "set_step", None)

    def predict(x: Tensor, call: Call) -> Tensor:
        if set_step is not None:
            set_step(call.step)
        timesteps = torch.full((len(x),), call.timestep, device=x.device)
        noise = call.parametrization.noise(outputs(x, timesteps, guidance), x)
        return finite(noise, f"prediction at sampling step {call.step} (timestep {call.timestep})")

    return predict


def save(path: Path, model: Denoiser, manifest: Manifest, dtype: torch.dtype | None = None) -> Manifest:
    """Write a model artifact, its weights as ``dtype`` or as they are; the architecture goes into the notes."""
    network: Any = model.network
    described: dict[str, Any] = {
        "architecture": type(network).__name__,
        "config": _plain(network.config),
        "scheduler": _plain(model.scheduler.config),
        "heads": architectures.of(network).heads(),
    }
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    if model.first_stage is not None:
        autoencoder: Any = model.first_stage.network
        described["first_stage"] = {
            "architecture": type(autoencoder).__name__,
            "config": _plain(autoencoder.config),
            "scale_factor": model.first_stage.scale_factor,
        }
        tensors |= {f"first_stage.{name}": tensor for name, tensor in autoencoder.state_dict().items()}
    if model.conditioner is not None:
        described["conditioner"] = model.conditioner.describe()
        tensors |= {
            f"conditioner.{name}": tensor for name, tensor in conditioners.tensors_of(model.conditioner).items()
        }
    if dtype is not None:
        tensors = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    notes = manifest.notes | described
    return save_tensors(
        path,
        tensors,
        Manifest(kind="model", settings=manifest.settings, seeds=manifest.seeds, inputs=manifest.inputs, notes=notes),
    )


def load(path: Path, device: torch.device | str = "cpu") -> Denoiser:
    """Read a model artifact as float32 in eval mode. Raises ArtifactError when it does not fit."""
    artifact = load_tensors(path, "model")
    notes = artifact.manifest.notes
    tensors = {
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in artifact.tensors.items()
    }
    try:
        # Heads are told apart from the config, which cannot say them where levels differ.
        network = architectures.build(notes["architecture"], notes["config"], notes["heads"])
        network.load_state_dict(_part(tensors, "network"))
        stage = conditioner = None
        if described := notes.get("first_stage"):
            autoencoder = first_stage.build(described["architecture"], described["config"])
            autoencoder.load_state_dict(_part(tensors, "first_stage"))
            stage = FirstStage(_ready(autoencoder, device), described["scale_factor"])
        if described := notes.get("conditioner"):
            conditioner = _ready(conditioners.build(described, _part(tensors, "conditioner")), device)
    except (RuntimeError, KeyError) as error:
        raise ArtifactError(f"{path}: weights do not fit their own architecture: {error}") from error
    except ValueError as error:
        raise ArtifactError(f"{path}: {error}") from error
    scheduler: Any = DDIMScheduler.from_config(notes["scheduler"])
    return Denoiser(_ready(network, device), scheduler, stage, conditioner, artifact.manifest.sha256)


def _ready(module: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Any:
    return nn.Module.to(module.eval().requires_grad_(False), device, dtype)  # diffusers' own warns of every dtype


def _part(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}."): tensor for name, tensor in tensors.items() if name.startswith(f"{part}.")}


def _plain(config: Any) -> dict[str, Any]:
    """A diffusers config as plain JSON, without the library's private keys."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in config.items()
        if not key.startswith("_")
    }
