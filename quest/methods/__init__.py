"""Quantization methods, one file each, registered by the name of the file (``-`` written ``_``).

A method is a function ``quantize(network, calibration, settings, seed) -> Outcome``. It finds the network with its
weights on their grids (rounded as reconstructed, where the method starts from a reconstruction) and leaves it with
all activation scales calibrated. A method whose paper leaves layers out has ``paper_policy(bits) -> Policy`` too, used
where its settings say ``policy: paper``.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, NamedTuple

import torch

from quest import artifacts, calibration, checkpoints, reconstruction
from quest.config import METHODS, Bits, DatasetSettings, base_method, unknown
from quest.device import resolve
from quest.models import denoiser as denoisers
from quest.models.correction import Correction
from quest.models.denoiser import Denoiser
from quest.quantization.network import QuantizedNetwork, Recipe
from quest.quantization.policy import COMMON, TIME_FULL_PRECISION


class Outcome(NamedTuple):
    """What a method has to say beside the network that it leaves behind.

    notes: facts about the training, for the checkpoint's manifest. correction: of the sampler, where the method makes
    one; it travels in the checkpoint.
    """

    notes: dict[str, Any]
    correction: Correction | None = None


def get(name: str) -> Any:
    """The module of a method, or of a variant's method. Raises ValueError for an unknown name."""
    base = base_method(name)
    if base not in METHODS:
        raise ValueError(f"--method: {unknown(base, METHODS)}")
    return importlib.import_module(f"quest.methods.{base.replace('-', '_')}")


def start(
    settings: DatasetSettings, denoiser: Denoiser, method: str, bits: Bits, reconstruction_file: Path | None
) -> tuple[QuantizedNetwork, dict[str, str]]:
    """The network that a method starts from, weights on their grids, made of ``denoiser``'s, which is taken over;
    and the sha256 of the reconstruction that it has them from, by the name "reconstruction". Raises ValueError."""
    method_settings = settings.method(method)
    named = {"common": COMMON, "time_full_precision": TIME_FULL_PRECISION}
    policy = named.get(method_settings.policy) or get(method).paper_policy(bits)
    recipe = Recipe.of(settings, bits, method_settings.sets, policy, method_settings.lower_bits(bits.activation))
    network = QuantizedNetwork(denoiser.network, recipe, denoiser.example())
    variant = method_settings.starts_from
    if variant is None:
        return network, {}
    if reconstruction_file is None:
        raise ValueError(f"{method} starts from reconstructed weights; give them with --reconstruction")
    return network, {"reconstruction": reconstruction.apply(reconstruction_file, network, denoiser, variant)}


def run(
    settings: DatasetSettings,
    model: Path,
    method: str,
    bits: Bits,
    seed: int,
    calibration_file: Path,
    reconstruction_file: Path | None,
    output: Path,
    device: str,
) -> None:
    """The `finetune` stage: quantize the model by ``method`` and write its low-bit checkpoint.

    method: or a variant of one, whose overrides ``settings`` has already; the checkpoint carries its name.
    """
    module = get(method)
    method_settings = settings.method(method)
    where = resolve(device)
    torch.manual_seed(seed)
    denoiser = denoisers.load(model, where)
    data = calibration.load(calibration_file, denoiser, settings).to(where)
    network, inputs = start(settings, denoiser, method, bits, reconstruction_file)
    inputs |= {"model": denoiser.sha256, "calibration": data.sha256}
    outcome: Outcome = module.quantize(network, data, method_settings, seed)
    recorded = {"method": artifacts.plain(method_settings), "quantizer": artifacts.plain(settings.quantizer)}
    checkpoints.save(output, network, method, recorded, seed, inputs, *outcome)
