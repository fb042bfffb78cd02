"""Quality against size: bits chosen for each layer beside uniform bits of the same bytes, method by method.

A point is one chain, calibration to images; its closeness is on seeds that no choice has seen. Each is a file, and one
that is there is not made again: a command that was killed goes on, and several may work in one folder. What points
share is made once: calibration data, the sensitivity of the layers, images of full precision, learned rounding.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from quest import artifacts, methods
from quest.artifacts import ArtifactError, Manifest, plain
from quest.config.dataset import DatasetSettings
from quest.config.method import Rounding
from quest.config.quantizer import OF_WEIGHTS
from quest.config.values import Bits
from quest.deploy import checkpoints
from quest.diffusion import denoiser as denoisers
from quest.diffusion import sampling
from quest.learning import calibration as calibrations
from quest.learning.progress import Progress, beside
from quest.metrics import distances
from quest.metrics.measure import squared_errors
from quest.own import choice as choices
from quest.own import layerwise, shared
from quest.own.choice import Candidates
from quest.quantization import allocation
from quest.quantization.allocation import Choice
from quest.report import front
from quest.report.front import CHAIN, MIXED, TABLE, UNIFORM, Row
from quest.stages import calibrate

log = logging.getLogger(__name__)


def run(
    dataset: str,
    settings: DatasetSettings,
    method: str,
    bits: Sequence[Bits],
    chosen: Sequence[str],
    images: int,
    seed: int,
    folder: Path,
    device: torch.device,
    measured: Path | None = None,
) -> Iterator[Row]:
    """The points of a method that are not in ``folder`` yet, a file each.

    bits: uniform weight bits and those of activations, and for each how layers get theirs (`quest.report.front`); none
    for all weight bits. Where there is one choice alone, in the fewest bytes and in the most, that is the uniform one.
    measured: a folder of metrics, whose cells of this seed are taken for uniform bits.
    """
    for each in bits or [Bits(weight, 8) for weight in allocation.WIDTHS]:
        for way in chosen:
            if way == MIXED and each.weight in (min(allocation.WIDTHS), max(allocation.WIDTHS)):
                continue
            file = folder / f"{front.name(method, each, way, seed)}.json"
            if not file.is_file():
                chain = _Chain(dataset, settings, method, each, way, images, seed, folder / "work", device)
                shared.made(file, lambda file, chain=chain: chain.write(file, measured))
                yield artifacts.load_json(file, front.KIND).content


class _Chain:
    """One method at one choice of bits."""

    def __init__(
        self,
        dataset: str,
        settings: DatasetSettings,
        method: str,
        bits: Bits,
        chosen: str,
        images: int,
        seed: int,
        work: Path,
        device: torch.device,
    ):
        self._dataset, self._settings, self._method, self._bits, self._chosen = dataset, settings, method, bits, chosen
        self._images, self._seed, self._work, self._device = images, seed, work, device
        self._model = settings.model
        most = Bits(max(allocation.WIDTHS), bits.activation)
        self._found: Candidates = choices.candidates(denoisers.load(self._model), settings, method, most)

    def write(self, file: Path, measured: Path | None) -> None:
        """The point: of a cell of ``measured``, or of the chain, which is made."""
        cell = None if measured is None else measured / f"{self._method}-{self._bits}-seed{self._seed}.json"
        if self._chosen == UNIFORM and cell is not None and cell.is_file():
            metrics = artifacts.load_json(cell, "metrics").manifest
            if metrics.inputs["model"] != self._model_sha256:
                raise ArtifactError(f"{cell}: measured of another model than {self._model}; leave --measured out")
            each = metrics.notes.get("mse_of_images", [])[: self._images]
            if len(each) == self._images:
                self._write(file, each, {"source": TABLE, "seconds": None}, {"metrics": metrics.sha256})
                return
            log.warning("%s: of %d images, not %d; made anew", cell, len(each), self._images)
        began = time.monotonic()
        full = artifacts.load_tensors(self._full, "samples").tensors["images"]
        each = squared_errors(self._drawn(), full)
        self._write(file, each, {"source": CHAIN, "seconds": round(time.monotonic() - began)}, {})

    def _write(self, file: Path, each: Sequence[float], made: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
        choice, found = self._choice, self._found
        size, weights = found.size(choice), {name: math.prod(shape) for name, shape in found.shapes.items()}
        predicted = sum(self._errors[name][bits] for name, bits in choice.items()) if self._chosen == MIXED else None
        row = {
            "dataset": self._dataset,
            "method": self._method,
            "bits": str(self._bits),
            "chosen": self._chosen,
            "seed": self._seed,
            "share": round(size / found.half, 4),
            "bytes": size,
            "mean_weight_bits": round(sum(weights[name] * choice[name] for name in choice) / sum(weights.values()), 3),
            "predicted_mse": predicted,
            "psnr": _rounded(distances.psnr(sum(each) / len(each))),
            "worst_psnr": _rounded(distances.psnr(max(each))),
            "images": len(each),
            "layers": {str(bits): count for bits, count in sorted(Counter(choice.values()).items())},
            **made,
        }
        settings = {"method": plain(self._settings.method(self._method)), "quantizer": plain(self._settings.quantizer)}
        inputs = {"model": self._model_sha256, **inputs}
        notes = {"mse_of_images": [float(f"{error:.4g}") for error in each], "choice": choice}
        artifacts.save_json(file, row, Manifest(front.KIND, settings, {"run": self._seed}, inputs, notes))

    @cached_property
    def _choice(self) -> Choice:
        """Bits of each layer: the uniform ones, or others in as many bytes."""
        uniform = self._found.evenly(self._bits.weight)
        if self._chosen != MIXED:
            return uniform
        options = self._found.options(self._errors)
        return allocation.fitting(options, self._found.size(uniform) - self._found.size(allocation.coarsest(options)))

    def _drawn(self) -> torch.Tensor:
        """Images of the chain; what it was made of on the way is left to others, its own is removed."""
        recipe, calibration = self._found.of(self._choice), self._calibration
        learned = methods.starts_from(self._method, self._settings.method(self._method))
        rounding = None if learned is None else self._rounding(learned)
        checkpoint = self._work / f"{front.name(self._method, self._bits, self._chosen, self._seed)}.safetensors"
        if not checkpoint.is_file():
            files = (self._seed, calibration, rounding, checkpoint, self._device)
            layerwise.finetune(self._settings, self._model, recipe, self._method, *files, {})
        denoiser = denoisers.load(self._model, self._device)
        made = checkpoints.load(checkpoint, denoiser)
        given = (self._settings, self._seed, range(self._images), self._device)
        with made.network.frozen():
            images = sampling.draw(denoiser, made.network, *given, made.correction)
        checkpoint.unlink()
        return images

    @property
    def _model_sha256(self) -> str:
        return artifacts.read_manifest(self._model, "model").sha256

    @property
    def _calibration(self) -> Path:
        def make(file: Path) -> None:
            calibrate.run(self._dataset, self._settings, self._model, self._seed, file, self._device)

        return shared.made(self._work / f"calibration-seed{self._seed}.safetensors", make)

    @property
    def _full(self) -> Path:
        def make(file: Path) -> None:
            denoiser = denoisers.load(self._model, self._device)
            given = (self._settings, self._seed, range(self._images), self._device)
            images = sampling.draw(denoiser, denoiser.network, *given)
            manifest = Manifest("samples", seeds={"run": self._seed}, inputs={"model": denoiser.sha256})
            artifacts.save_tensors(file, {"images": images}, manifest)

        return shared.made(self._work / f"full-{self._images}-seed{self._seed}.safetensors", make)

    def _rounding(self, learned: Rounding) -> Path:
        """Rounding that is learned together, the same for all methods that start from it and all activation bits."""

        def make(file: Path) -> None:
            given = (learned, self._seed, self._calibration, file, self._device)
            layerwise.reconstruct(self._settings, self._model, self._found.of(self._choice), *given)

        name = f"{learned.grouping}-{learned.policy}-w{self._bits.weight}-{self._chosen}-seed{self._seed}"
        return shared.made(self._work / f"{name}.safetensors", make)

    @cached_property
    def _errors(self) -> dict[str, dict[int, float]]:
        """The sensitivity of each layer, which is the same for every method: its weight is rounded to nearest."""
        grids = {key: getattr(self._found.recipe.quantizer, key) for key in OF_WEIGHTS}

        def make(file: Path) -> None:
            data = calibrations.load(self._calibration, denoisers.load(self._model), self._settings).to(self._device)
            progress = Progress(beside(file), {"calibration": data.sha256, "seed": self._seed, "grids": grids})
            errors = choices.measured(self._found, self._model, data, self._seed, self._device, progress)
            inputs = {"model": self._model_sha256, "calibration": data.sha256}
            artifacts.save_json(file, errors, Manifest("sensitivity", grids, {"run": self._seed}, inputs))
            progress.remove()

        file = shared.made(self._work / f"sensitivity-seed{self._seed}.json", make)
        kept = artifacts.load_json(file, "sensitivity")
        if kept.manifest.settings != grids or kept.manifest.inputs["model"] != self._model_sha256:
            raise ArtifactError(f"{file}: measured of another model or other grids; name another --output")
        return {name: {int(bits): error for bits, error in each.items()} for name, each in kept.content.items()}


def _rounded(psnr: float | None) -> float | None:
    return None if psnr is None else round(psnr, 2)
