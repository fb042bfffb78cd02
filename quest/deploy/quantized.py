"""A quantized model in memory: it draws images, accounts for its bits, and goes to a checkpoint and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quest.artifacts import ArtifactError, Manifest, load_tensors
from quest.config.evaluation import EvaluationSettings
from quest.config.sampling import SamplerSettings
from quest.config.values import Bits
from quest.deploy import checkpoints
from quest.deploy.checkpoints import Checkpoint
from quest.device import resolve
from quest.diffusion import denoiser as denoisers
from quest.diffusion.conditioners import ClassLabels, TextEncoder
from quest.diffusion.conditions import EVALUATION, in_turn
from quest.diffusion.denoiser import Denoiser
from quest.diffusion.sampling import sample
from quest.quantization import mixed
from quest.quantization.network import QuantizedNetwork

_BATCH = EvaluationSettings().batch_size


@dataclass(frozen=True, repr=False)
class QuantizedModel:
    """What `quest.quantize` and `quest.load` give.

    checkpoint: the quantized network, its sampler and how it was made. around: the model that the network was taken
    from, with its schedule, first stage and conditioner. original: the same in full precision, where no model artifact
    has it; it is saved beside the checkpoint.
    """

    checkpoint: Checkpoint
    around: Denoiser
    original: Denoiser | None = None

    def __repr__(self) -> str:
        return f"<{self.method} {self.label}, {self.sampler.steps} {self.sampler.kind} steps>"

    @property
    def network(self) -> QuantizedNetwork:
        """The noise predictor; `QuantizedNetwork.set_step` before a call of one's own."""
        return self.checkpoint.network

    @property
    def method(self) -> str:
        return self.checkpoint.method

    @property
    def bits(self) -> Bits:
        return self.network.recipe.bits

    @property
    def label(self) -> str:
        """Its bits in words: like w4a8, and where layers were given bits of their own w3.41a8, of their mean."""
        return mixed.label(self.network)

    @property
    def sampler(self) -> SamplerSettings:
        """What the model was quantized for."""
        return self.checkpoint.sampler

    def sample(self, images: int | Sequence[Any], *, seed: int = 0, batch_size: int = _BATCH) -> Tensor:
        """Draw images, (N, channels, H, W) uint8 on the CPU.

        images: how many (a class-conditional model takes its classes in turn), or the class or prompt of each.
        Image i of a seed is the one that the `sample` stage draws, however many there are; batches of another size
        round differently, by one grey level at most. Raises ValueError when the model cannot draw what is asked for.
        """
        count = images if isinstance(images, int) else len(images)
        if count < 1:
            raise ValueError(f"images: found {images!r}; expected at least one")
        indices = range(count)
        wanted = self._in_turn(seed, indices) if isinstance(images, int) else self._given(images)
        with self.network.frozen():
            device, correction = self.around.device, self.checkpoint.correction
            return sample(
                self.around, self.network, self.sampler, seed, indices, wanted, batch_size, device, correction
            )

    def account(self) -> dict[str, Any]:
        """The bit account: sizes in MiB, 10^9 bit operations of one call, mean bits; see `quest.quantization.account`.

        Raises ValueError when a weight or an activation uses more levels than its bits.
        """
        return self.network.account()

    def save(self, path: str | PathLike[str]) -> None:
        """Write the checkpoint to ``path``, and beside it the full-precision model, unless a model artifact has it.

        That is ``<stem>.model.safetensors``, where `load` looks for it.
        """
        path, checkpoint = Path(path), self.checkpoint
        if self.original is not None:
            written = denoisers.save(_beside(path), self.original, Manifest(kind="model"))
            checkpoint = replace(checkpoint, inputs=checkpoint.inputs | {"model": written.sha256})
        checkpoints.save(path, checkpoint)

    def _in_turn(self, seed: int, indices: range) -> list[Any] | None:
        conditioner = self.around.conditioner
        if isinstance(conditioner, TextEncoder):
            raise ValueError(
                f"images: found {len(indices)}; the model draws text, so give a list with a prompt for each"
            )
        classes = range(conditioner.classes) if isinstance(conditioner, ClassLabels) else None
        return in_turn(classes, EVALUATION, seed, indices)

    def _given(self, images: Sequence[Any]) -> list[Any]:
        if isinstance(images, str):
            raise ValueError(f"images: found the text {images!r}; expected a list with a prompt for each image")
        if self.around.conditioner is None:
            raise ValueError(f"images: found {images!r}; the model is unconditional, so expected how many")
        return list(images)


def save(quantized: QuantizedModel, path: str | PathLike[str]) -> None:
    """Write ``quantized`` to the checkpoint ``path``; see `QuantizedModel.save`."""
    quantized.save(path)


def load(
    checkpoint: str | PathLike[str],
    model: str | PathLike[str] | None = None,
    device: str | torch.device = "auto",
) -> QuantizedModel:
    """Read a checkpoint, of `save` or of the workflow's `finetune` stage.

    model: the artifact of the full-precision model that it was made of; ``<stem>.model.safetensors`` beside the
    checkpoint unless given. device: "auto" takes a GPU when there is one. Raises ValueError when one of the files is
    missing, corrupt, or not of the other.
    """
    path = Path(checkpoint)
    file = _beside(path) if model is None else Path(model)
    if model is None and not file.is_file():
        sha256 = load_tensors(path, "checkpoint").manifest.inputs["model"]
        raise ArtifactError(
            f"{path}: quantized from the model with sha256 {sha256}, which is not beside it as {file.name}; "
            "say where its artifact is, like quest.load(checkpoint, model='data/models/digits/denoiser.safetensors')"
        )
    around = denoisers.load(file, resolve(str(device)))
    return QuantizedModel(checkpoints.load(path, around), around)


def _beside(checkpoint: Path) -> Path:
    """Where the full-precision model of a checkpoint lies, if it is not an artifact elsewhere."""
    return checkpoint.with_name(f"{checkpoint.stem}.model.safetensors")
