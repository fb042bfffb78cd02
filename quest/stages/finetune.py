"""Quantize the model by a method and write its low-bit checkpoint."""

from __future__ import annotations

from pathlib import Path

import click
import torch

from quest import artifacts, methods
from quest.config.dataset import DatasetSettings
from quest.config.values import Bits
from quest.deploy import checkpoints, start
from quest.deploy.checkpoints import Checkpoint
from quest.device import limited
from quest.diffusion import denoiser as denoisers
from quest.learning import calibration as calibrations
from quest.learning.progress import Progress, beside
from quest.stages import CELL, DEVICE, OUTPUT, PROTOCOL

SECTIONS = ("sampler", "condition", "calibration", "quantizer", "methods.{method}")
PARAMETERS = (
    *PROTOCOL,
    *CELL,
    OUTPUT,
    DEVICE,
    click.Option(
        ["--memory"],
        type=click.FloatRange(min=0, min_open=True),
        help="GiB of the device, within which the backward pass computes again what does not fit; the result is the "
        "same. Default: QUEST_MEMORY_GIB, or any.",
    ),
)


def run(
    dataset: str,
    settings: DatasetSettings,
    model: Path,
    method: str,
    bits: str,
    seed: int,
    calibration: Path,
    reconstruction: Path | None,
    output: Path,
    device: torch.device,
    memory: float | None = None,
) -> None:
    """Write an artifact of kind "checkpoint"; a run that was killed goes on after its last epoch, trajectory or unit.

    method: or a variant of one, whose overrides ``settings`` has already; the checkpoint carries its name.
    memory: GiB of the device, no part of the result.
    """
    torch.manual_seed(seed)
    denoiser = denoisers.load(model, device)
    data = calibrations.load(calibration, denoiser, settings).to(device)
    network, inputs = start.network(settings, denoiser, method, Bits.parse(bits), reconstruction)
    inputs |= {"model": denoiser.sha256, "calibration": data.sha256}
    recorded = {"method": settings.method(method), "quantizer": settings.quantizer}
    recorded = {name: artifacts.plain(section) for name, section in recorded.items()}
    depends = {"settings": recorded, "method": method, "bits": bits, "seed": seed, "inputs": inputs}
    progress = Progress(beside(output), depends | {"device": device.type})
    with limited(memory):
        outcome = methods.get(method).quantize(network, data, settings.method(method), seed, progress)
    checkpoint = Checkpoint(
        network,
        method,
        sampler=settings.sampler,
        condition=denoiser.condition,
        correction=outcome.correction,
        settings=recorded,
        seed=seed,
        inputs=inputs,
        notes=outcome.notes,
    )
    checkpoints.save(output, checkpoint)
    progress.remove()
