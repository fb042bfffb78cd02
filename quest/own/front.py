"""Quality against size: bits chosen for each layer beside uniform bits of the same bytes, method by method.

A row is one chain, calibration to images; its closeness is on seeds that no choice has seen. Rows that are in the file
already are not made again, so that a command that was killed goes on, and methods can be added one by one.
"""

from __future__ import annotations

import csv
import logging
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from quest import artifacts, methods
from quest.config.dataset import DatasetSettings
from quest.config.methods import title
from quest.config.values import Bits
from quest.deploy import checkpoints
from quest.diffusion import denoiser as denoisers
from quest.diffusion import sampling
from quest.learning import calibration as calibrations
from quest.learning.progress import Progress
from quest.metrics import distances
from quest.metrics.measure import squared_errors
from quest.own import choice as choices
from quest.own import layerwise
from quest.own.choice import Candidates
from quest.quantization import allocation
from quest.quantization.allocation import Choice
from quest.report import drawing
from quest.stages import calibrate

log = logging.getLogger(__name__)

Row = dict[str, Any]
UNIFORM, MIXED = "uniform", "mixed"
_COLUMNS = ("method", "bits", "chosen", "share", "mib", "predicted_mse", "psnr", "worst_psnr", "images", "seconds")


def run(
    dataset: str,
    settings: DatasetSettings,
    method: str,
    activation_bits: int,
    weight_bits: Sequence[int],
    images: int,
    seed: int,
    folder: Path,
    device: torch.device,
) -> Iterator[Row]:
    """A row with uniform ``weight_bits``, and one with bits chosen for each layer in as many bytes; each is added to
    front.csv in ``folder`` as it is made, and front.png drawn anew."""
    folder.mkdir(parents=True, exist_ok=True)
    file, rows = folder / "front.csv", _read(folder / "front.csv")
    bench = _Bench(dataset, settings, method, activation_bits, images, seed, folder / "work", device)
    for bits in weight_bits:
        for chosen in (UNIFORM, MIXED):
            if chosen == MIXED and bits in (min(bench.found.widths), max(bench.found.widths)):
                continue  # in so few bytes, or so many, there is one choice
            if any((row["method"], row["bits"], row["chosen"]) == (method, str(bits), chosen) for row in rows):
                continue
            yield bench.row(bits, chosen)
            rows = [*_read(file), {key: str(value) for key, value in bench.last.items()}]
            _write(file, rows)
            drawing.save(chart(dataset, rows), folder / "front.png", small=True)


class _Bench:
    """The chains of one method on a model."""

    def __init__(
        self,
        dataset: str,
        settings: DatasetSettings,
        method: str,
        activation_bits: int,
        images: int,
        seed: int,
        work: Path,
        device: torch.device,
    ):
        self._dataset, self._settings, self._method = dataset, settings, method
        self._images, self._seed, self._work, self._device = range(images), seed, work, device
        self._model = settings.model
        bits = Bits(max(choices.WIDTHS), activation_bits)
        self.found: Candidates = choices.candidates(denoisers.load(self._model), settings, method, bits)
        self.last: Row = {}
        self._calibration = work / "calibration.safetensors"
        if not self._calibration.is_file():
            calibrate.run(dataset, settings, self._model, seed, self._calibration, device)
        denoiser = denoisers.load(self._model, device)
        data = calibrations.load(self._calibration, denoiser, settings).to(device)
        progress = Progress(work / "sensitivity.safetensors", {"calibration": data.sha256, "seed": seed})
        self._errors = choices.measured(self.found, self._model, data, seed, device, progress)
        self._full = sampling.draw(denoiser, denoiser.network, settings, seed, self._images, device)

    def row(self, bits: int, chosen: str) -> Row:
        """A chain with uniform bits, or with chosen ones in as many bytes."""
        choice = self.found.evenly(bits)
        if chosen == MIXED:
            options = self.found.options(self._errors)
            room = self.found.size(choice) - self.found.size(allocation.coarsest(options))
            choice = allocation.fitting(options, room)
        began = time.monotonic()
        each = squared_errors(self._drawn(choice, f"{self._method}-{chosen}-w{bits}"), self._full)
        size = self.found.size(choice)
        self.last = {
            "method": self._method,
            "bits": bits,
            "chosen": chosen,
            "share": round(size / self.found.half, 4),
            "mib": round(size / 2**20, 4),
            "predicted_mse": f"{sum(self._errors[name][width] for name, width in choice.items()):.3e}",
            "psnr": _decibels(sum(each) / len(each)),
            "worst_psnr": _decibels(max(each)),
            "images": len(each),
            "seconds": round(time.monotonic() - began),
        }
        return self.last

    def _drawn(self, choice: Choice, name: str) -> torch.Tensor:
        recipe, method = self.found.of(choice), self._method
        learned = methods.starts_from(method, self._settings.method(method))
        rounding, checkpoint = (self._work / f"{name}.{what}.safetensors" for what in ("rounding", "checkpoint"))
        files = (self._seed, self._calibration)
        if learned is not None and not rounding.is_file():
            layerwise.reconstruct(self._settings, self._model, recipe, learned, *files, rounding, self._device)
        if not checkpoint.is_file():
            starts = None if learned is None else rounding
            layerwise.finetune(
                *(self._settings, self._model, recipe, method, *files, starts, checkpoint, self._device, {})
            )
        denoiser = denoisers.load(self._model, self._device)
        made = checkpoints.load(checkpoint, denoiser)
        with made.network.frozen():
            return sampling.draw(
                *(denoiser, made.network, self._settings, self._seed, self._images, self._device, made.correction)
            )


def chart(dataset: str, rows: Sequence[Row]) -> Figure:
    """PSNR over size: a colour a method, uniform bits dashed, chosen ones solid."""
    figure = drawing.figure(6.4, 4.2, layout="constrained")
    axes = figure.subplots()
    for method in dict.fromkeys(row["method"] for row in rows):
        for chosen, dashes in ((UNIFORM, "--"), (MIXED, "-")):
            mine = sorted((row for row in rows if row["method"] == method and _is(row, chosen)), key=_share)
            (line,) = axes.plot([_share(row) for row in mine], [float(row["psnr"]) for row in mine])
            line.set(**drawing.method_styles([method])[method] | {"linestyle": dashes})
            line.set_label(f"{title(method)}, {chosen}")
    drawing.plain(axes, f"{dataset}: quality against size", "size, of the float16 network", "PSNR (dB) ↑")
    axes.legend(frameon=False)
    return figure


def _is(row: Row, chosen: str) -> bool:
    """Whether a row belongs to a line; where there is one choice it belongs to both."""
    return row["chosen"] == chosen or int(row["bits"]) in (min(choices.WIDTHS), max(choices.WIDTHS))


def _decibels(mse: float) -> float:
    psnr = distances.psnr(mse)
    return math.inf if psnr is None else round(psnr, 2)


def _share(row: Row) -> float:
    return float(row["share"])


def _read(file: Path) -> list[Row]:
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def _write(file: Path, rows: Sequence[Row]) -> None:
    with artifacts.atomic(file) as partial, partial.open("w", encoding="utf-8", newline="") as opened:
        writer: csv.DictWriter[str] = csv.DictWriter(opened, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
