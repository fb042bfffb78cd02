"""Calibration data of a pipeline that samples by itself: what it tells its network at each step, call for call."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from quest import architectures, artifacts
from quest.architectures import Inputs
from quest.learning.calibration import Calibration, Samples

_ADDED = "added."
_PLACES = ("img_ids", "txt_ids")  # of Flux's tokens; its architecture makes them anew, for square images


@dataclass(frozen=True)
class ToldSamples(Samples):
    """Samples of a network that is told more than a context. added: by name, (m, …) as ``contexts``."""

    added: Mapping[str, Tensor] = field(default_factory=dict)

    def inputs(self, batch: Tensor) -> Inputs:
        told = super().inputs(batch)
        if not self.added or self.context_of is None:
            return told
        of_sample = self.context_of[batch]
        return told._replace(added={name: tensor[of_sample] for name, tensor in self.added.items()})


@dataclass(frozen=True)
class Calls(Calibration):
    """Network inputs as the pipeline's own sampler had them. It has no `Sampler`, so no method can walk from it.

    x: (recorded steps, samples, C, H, W); contexts: (samples, …), and added: by name (samples, …), what each sample was
    told at every step. A guided image gives two samples, one after the other. times: (sampling steps,), the timesteps.
    """

    times: Tensor = field(default_factory=lambda: torch.zeros(0))
    added: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def timesteps(self) -> Tensor:
        return self.times

    @property
    def halves(self) -> int:
        return 1

    def samples(self, each: int) -> ToldSamples:
        count = min(each, len(self))
        steps = torch.tensor(self.steps).repeat_interleave(count)
        device = self.x.device
        times = self.times.to(device)[steps.to(device)]
        of_sample = torch.arange(count, device=device).repeat(len(self.steps))
        return ToldSamples(self.x[:, :count].flatten(0, 1), times, steps, self.contexts, of_sample, self.added)

    def to(self, device: torch.device) -> Calls:
        moved = {name: None if value is None else value.to(device) for name, value in self._tensors().items()}
        return replace(self, **moved, added={name: tensor.to(device) for name, tensor in self.added.items()})

    def _tensors(self) -> dict[str, Tensor | None]:
        return {"x": self.x, "contexts": self.contexts, "times": self.times}

    def export(self) -> dict[str, Tensor]:
        return super().export() | {f"{_ADDED}{name}": tensor for name, tensor in self.added.items()}


def load(path: Path) -> Calls:
    """Read what `Calls.export` gave from an artifact of kind "calibration"."""
    artifact = artifacts.load_tensors(path, "calibration")
    tensors: dict[str, Any] = dict(artifact.tensors)
    added = {name.removeprefix(_ADDED): tensors.pop(name) for name in artifact.tensors if name.startswith(_ADDED)}
    sampler: Any = None
    return Calls(**tensors, steps=artifact.manifest.notes["steps"], sampler=sampler, added=added)


def told(network: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any]) -> Inputs:
    """What a pipeline's call of ``network`` tells it, in our words; inverse of `Architecture.arguments`.

    Raises ValueError for arguments that are no tensors, which no architecture passes on.
    """
    architecture = architectures.of(network)
    given = dict(inspect.signature(type(network).forward).bind(network, *args, **named).arguments)
    for name in ("self", "return_dict", "timestep"):
        given.pop(name, None)
    given |= given.pop("added_cond_kwargs", None) or {}
    x = given.pop("sample" if "sample" in given else "hidden_states")
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    if strange := [name for name, value in given.items() if name not in tensors and value not in (None, {})]:
        raise ValueError(f"its network is also told {', '.join(strange)}, which are no tensors")
    if x.ndim == 3:  # tokens of an image, like those that the network gives
        x = architecture.prediction(SimpleNamespace(sample=x))
        tensors = {name: value for name, value in tensors.items() if name not in _PLACES}
    context = tensors.pop("encoder_hidden_states" if "encoder_hidden_states" in tensors else "class_labels", None)
    times = torch.as_tensor(architecture.timestep(args, named), device=x.device).reshape(-1)[:1]
    return Inputs(x, times.expand(len(x)), context, tensors)
