"""What a stage has done so far, in a file beside its output, so that a killed run goes on from there.

A file is used again only for what it was made by: settings, seed, inputs and device, this code and this torch. It is
written after each finished unit, epoch or trajectory, whole or not at all, and a run that goes on ends with the same
result as one that nothing stopped: on the CPU bit for bit.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import quest
from quest import artifacts
from quest.artifacts import ArtifactError

log = logging.getLogger(__name__)


class Progress:
    """States by name: nested lists and dictionaries of tensors and plain JSON.

    path: the file (`beside` an output); without, nothing is kept. key: what the states depend on, plain JSON. A file of
    another key, or a damaged one, is not used.
    """

    def __init__(self, path: Path | None = None, key: dict[str, Any] | None = None):
        self._path, self._under = path, ""
        self._kept: dict[str, tuple[Any, dict[str, Tensor]]] = {}
        if path is not None:
            self._key = {"of": key, "code": _code(), "torch": str(torch.__version__)}
            self._read(path)

    def part(self, name: str) -> Progress:
        """The same file, for states whose names begin with ``name``."""
        part = copy.copy(self)
        part._under = f"{self._under}{name}/"
        return part

    def get(self, name: str) -> Any | None:
        """A state as it was put last, on the CPU; None if it never was."""
        kept = self._kept.get(self._under + name)
        return None if kept is None else _unpacked(*kept)

    def put(self, name: str, state: Any) -> None:
        """Keep ``state``, of which a copy is taken. A disk that is full is a warning: the work itself goes on."""
        if self._path is None:
            return
        tensors: dict[str, Tensor] = {}
        self._kept[self._under + name] = _packed(state, tensors), tensors
        try:
            self._write(self._path)
        except ArtifactError as error:
            log.warning("%s (what is done so far is not kept)", error)

    def remove(self) -> None:
        """The stage is done."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _read(self, path: Path) -> None:
        if not path.exists():
            return
        try:
            artifact = artifacts.load_tensors(path, "progress")
        except ArtifactError:
            log.warning("%s: damaged; starting anew", path)
            return
        if artifact.manifest.settings == self._key:
            self._kept = {name: (state, {}) for name, state in artifact.manifest.notes.items()}
            for key, tensor in artifact.tensors.items():
                name, _, number = key.rpartition("|")
                self._kept[name][1][number] = tensor
            log.info("going on after %s", ", ".join(self._kept))

    def _write(self, path: Path) -> None:
        tensors = {f"{name}|{key}": t for name, (_, own) in self._kept.items() for key, t in own.items()}
        notes = {name: state for name, (state, _) in self._kept.items()}
        artifacts.save_tensors(path, tensors, artifacts.Manifest("progress", settings=self._key, notes=notes))


def beside(output: Path) -> Path:
    """Where the progress towards ``output`` is kept."""
    return output.with_suffix(".progress.safetensors")


NOT_KEPT = Progress()


class Training:
    """All that a training loop changes, as one state.

    parameters: what is trained, by which optimizers (`quest.learning.optimizers`). generator: that batches are drawn
    with.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        optimizers: Sequence[torch.optim.Optimizer],
        generator: torch.Generator | None = None,
    ) -> None:
        self._parameters, self._optimizers, self._generator = parameters, optimizers, generator

    def state(self) -> dict[str, Any]:
        """What `resume` takes."""
        generator = None if self._generator is None else self._generator.get_state()
        return {
            "parameters": list(self._parameters),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "generator": generator,
        }

    @torch.no_grad()
    def resume(self, state: dict[str, Any]) -> None:
        """Be as when ``state`` was taken."""
        for parameter, kept in zip(self._parameters, state["parameters"], strict=True):
            parameter.copy_(kept)
        for optimizer, kept in zip(self._optimizers, state["optimizers"], strict=True):
            rates = [group["lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(kept)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate.copy_(group["lr"])  # where it was: on the device
        if self._generator is not None:
            self._generator.set_state(state["generator"])


@functools.cache
def _code() -> str:
    """sha256 of the library's source: what was begun by other code is not gone on with."""
    digest = hashlib.sha256()
    folder = Path(quest.__path__[0])
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def _packed(state: Any, tensors: dict[str, Tensor]) -> Any:
    """``state`` as plain JSON that names its tensors, copies of which are put into ``tensors``."""
    if isinstance(state, Tensor):
        name = str(len(tensors))
        tensors[name] = state.detach().cpu().clone()
        return {"tensor": name}
    if isinstance(state, dict):  # with keys of any kind, in their order
        return {"items": [[key, _packed(value, tensors)] for key, value in state.items()]}
    if isinstance(state, list | tuple):
        return [_packed(value, tensors) for value in state]
    return state


def _unpacked(state: Any, tensors: dict[str, Tensor]) -> Any:
    """Inverse of `_packed`, but for tuples, which come back as lists. Its tensors are copies again."""
    if isinstance(state, list):
        return [_unpacked(value, tensors) for value in state]
    if not isinstance(state, dict):
        return state
    if "tensor" in state:
        return tensors[state["tensor"]].clone()
    return {key: _unpacked(value, tensors) for key, value in state["items"]}
