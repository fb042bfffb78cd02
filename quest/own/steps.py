"""The steps from a model to a packed folder, and how they are done where the library's own samplers draw."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quest import artifacts
from quest.artifacts import ArtifactError, Manifest
from quest.config.dataset import DatasetSettings
from quest.config.method import Rounding
from quest.config.sampling import SamplerSettings
from quest.deploy import checkpoints, export
from quest.deploy.card import use_of
from quest.deploy.quantized import QuantizedModel
from quest.diffusion import denoiser as denoisers
from quest.diffusion.conditions import EVALUATION, conditions
from quest.diffusion.sampling import sample as sample_images
from quest.estimate import networks
from quest.own import plan, trial
from quest.own.card import Words
from quest.own.source import Source
from quest.own.trial import Trial
from quest.own.work import MODEL, Work
from quest.stages import calibrate, finetune, reconstruct, sample

TIMED = 4  # samples of a call that is timed for the card


class Steps(ABC):
    """What is done to a model, one step after another, each of which leaves a file.

    file: of the model, or the folder of its pipeline. sha256: of the model. sampler: what it is quantized for. images:
    channels and side of what it draws. drawn_by: its sampler in words; call: the same for the report, as JSON.
    """

    file: Path
    sha256: str
    sampler: SamplerSettings
    images: tuple[int, int]
    drawn_by: str
    call: dict[str, Any]

    @abstractmethod
    def estimated(self) -> networks.Model:
        """The networks, for calls of them to be counted and timed."""

    @abstractmethod
    def calibrate(self, settings: DatasetSettings, output: Path) -> None:
        """Record calibration data."""

    @abstractmethod
    def reconstruct(
        self, settings: DatasetSettings, weight_bits: int, learned: Rounding, calibration: Path, output: Path
    ) -> None:
        """Learn the rounding of the weights."""

    @abstractmethod
    def finetune(
        self, settings: DatasetSettings, method: str, bits: str, calibration: Path, rounding: Path | None, output: Path
    ) -> None:
        """Run the method and write its checkpoint."""

    @abstractmethod
    def full_precision(self, settings: DatasetSettings) -> Tensor:
        """Draw what the folder's images are compared with, (n, channels, H, W) uint8; what is drawn already is read."""

    @abstractmethod
    def trial(self, settings: DatasetSettings, folder: Path, calibration: Path, checkpoint: Path) -> Trial:
        """Pack the network into ``folder``, load it from there, draw with it and time it."""


class ByStages(Steps):
    """A model that the library's own samplers draw with: the stages' functions, in other files."""

    def __init__(self, source: Source, sampler: SamplerSettings, work: Work, seed: int, device: torch.device):
        self._model, self._work, self._seed, self._device = source.model, work, seed, device
        self.file = _model_file(source, work)
        self.sha256 = artifacts.read_manifest(self.file, "model").sha256
        self.sampler, self.images = sampler, plan.images_of(source.model)
        self.drawn_by, self.call = sampler.kind.upper(), sampler.model_dump(mode="json")
        self._words: Words | None = None

    def estimated(self) -> networks.Model:
        return networks.of(self._model.copy("cpu"))

    def calibrate(self, settings: DatasetSettings, output: Path) -> None:
        calibrate.run(plan.NAME, settings, self.file, self._seed, output, self._device)

    def reconstruct(
        self, settings: DatasetSettings, weight_bits: int, learned: Rounding, calibration: Path, output: Path
    ) -> None:
        grouping, policy = learned.grouping, learned.policy
        reconstruct.run(
            plan.NAME,
            settings,
            self.file,
            weight_bits,
            self._seed,
            grouping,
            policy,
            calibration,
            output,
            self._device,
        )

    def finetune(
        self, settings: DatasetSettings, method: str, bits: str, calibration: Path, rounding: Path | None, output: Path
    ) -> None:
        finetune.run(
            plan.NAME, settings, self.file, method, bits, self._seed, calibration, rounding, output, self._device
        )

    def full_precision(self, settings: DatasetSettings) -> Tensor:
        evaluation, shards = settings.evaluation, []
        for shard in range(evaluation.shards):
            # Batches of another size are other files, so that shards of two cuts never mix.
            file = self._work.file(f"full.{evaluation.images}x{evaluation.shards}.{shard}.safetensors")
            if not file.is_file():
                sample.run(plan.NAME, settings, self.file, None, self._seed, shard, file, self._device)
            shards.append(artifacts.load_tensors(file, "samples").tensors["images"])
        return torch.cat(shards)

    def trial(self, settings: DatasetSettings, folder: Path, calibration: Path, checkpoint: Path) -> Trial:
        loaded = denoisers.load(self.file, "cpu")
        quantized = QuantizedModel(checkpoints.load(checkpoint, loaded), loaded)
        if self._words is None:  # or else it is a second try, in smaller batches
            described = export.write_pipeline(folder, quantized)
            self._words = Words(quantized, described, account_of(checkpoint), use_of(quantized))
        packed, model = trial.loaded(folder, self._device), denoisers.load(self.file, self._device)
        around, evaluation = replace(model, network=packed), settings.evaluation

        def draw(indices: range) -> Tensor:
            wanted = conditions(settings.condition, EVALUATION, self._seed, indices)
            size = evaluation.batch_size
            return sample_images(around, packed, settings.sampler, self._seed, indices, wanted, size, model.device)

        images = trial.drawn(self._work, "trial", evaluation, self._seed, quantized.checkpoint.sha256, draw)
        inputs = trial.inputs_of(model, min(TIMED, evaluation.batch_size))
        return Trial(self._words, self.full_precision(settings), images, trial.speed(model.network, packed, inputs))


def _model_file(source: Source, work: Work) -> Path:
    """The model artifact that the stages read: the model's own, or one in the work's folder."""
    if source.artifact is not None:
        return source.artifact
    file = work.file(MODEL)
    if source.sha256 and file.is_file() and _made_of(file) == source.sha256:
        return file
    inputs = {"source": source.sha256} if source.sha256 else {}
    denoisers.save(file, source.model, Manifest(kind="model", inputs=inputs))
    return file


def _made_of(file: Path) -> str | None:
    try:
        return artifacts.read_manifest(file, "model").inputs.get("source")
    except ArtifactError:
        return None


def account_of(checkpoint: Path) -> dict[str, Any]:
    """The bit account of a checkpoint."""
    return artifacts.read_manifest(checkpoint, "checkpoint").notes["account"]
