"""Learn the rounding of the weights block by block; shared by every method that starts from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
import torch

from quest import artifacts, methods
from quest.config.dataset import DatasetSettings
from quest.config.method import GROUPINGS, Grouping
from quest.config.quantizer import OF_WEIGHTS
from quest.deploy import start
from quest.diffusion import denoiser as denoisers
from quest.learning import calibration as calibrations
from quest.learning.progress import beside
from quest.learning.reconstruction import Progress, reconstruct
from quest.stages import DEVICE, MODEL, OUTPUT, PROTOCOL, SEED, file

SECTIONS = (
    "sampler",
    "condition",
    "calibration",
    "quantizer.weight_search",
    "quantizer.weight_group",
    "quantizer.split_shortcuts",
    "quantizer.roles",
    "reconstruction",
)
PARAMETERS = (
    *PROTOCOL,
    MODEL,
    click.Option(["--weight-bits"], type=click.IntRange(2, 8), required=True),
    SEED,
    click.Option(
        ["--grouping"],
        type=click.Choice(GROUPINGS),
        default="blocks",
        show_default=True,
        help="Which layers are learned together.",
    ),
    click.Option(
        ["--policy"],
        type=click.Choice(methods.policies()),
        default="common",
        show_default=True,
        help="Which layers have other bits.",
    ),
    file("calibration"),
    OUTPUT,
    DEVICE,
)


def run(
    dataset: str,
    settings: DatasetSettings,
    model: Path,
    weight_bits: int,
    seed: int,
    grouping: Grouping,
    policy: str,
    calibration: Path,
    output: Path,
    device: torch.device,
) -> None:
    """Write an artifact of kind "reconstruction"; a run that was killed goes on after its last finished unit."""
    denoiser = denoisers.load(model, device)
    data = calibrations.load(calibration, denoiser, settings).to(device)
    network = start.rounding_network(settings, denoiser, weight_bits, policy)
    manifest = artifacts.Manifest(
        kind="reconstruction",
        settings={
            "reconstruction": artifacts.plain(settings.reconstruction),
            **{key: getattr(settings.quantizer, key) for key in OF_WEIGHTS},
            "weight_bits": weight_bits,
            "grouping": grouping,
            "policy": policy,
        },
        seeds={"run": seed},
        inputs={"model": denoiser.sha256, "calibration": data.sha256},
    )
    progress = Progress(
        beside(output),
        {"settings": manifest.settings, "seed": seed, "inputs": manifest.inputs, "device": device.type},
    )
    reconstruct(network, data, settings.reconstruction, seed, progress, grouping)
    artifacts.save_tensors(output, progress.tensors, replace(manifest, notes=progress.notes))
    progress.remove()
