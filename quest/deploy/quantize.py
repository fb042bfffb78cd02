"""From a full-precision model to a low-bit one in a single call: calibrate, learn the rounding, run the method.

The steps are those of the workflow's stages, with nothing written in between: the same settings and seed give the same
network.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quest import artifacts, methods
from quest.config.learning import CalibrationSettings, ReconstructionSettings
from quest.config.method import MethodSettings, Rounding
from quest.config.methods import METHODS, python_name
from quest.config.quantization import QuantizationSettings
from quest.config.quantizer import QuantizerSettings
from quest.config.reading import unknown, validate
from quest.config.sampling import SamplerSettings
from quest.config.values import UNQUANTIZED, Bits, ConfigError, Settings
from quest.deploy import start
from quest.deploy.checkpoints import Checkpoint
from quest.deploy.quantized import QuantizedModel
from quest.device import resolve
from quest.diffusion import denoiser as denoisers
from quest.diffusion.conditioners import ClassLabels, TextEncoder
from quest.diffusion.conditions import read_prompts
from quest.diffusion.denoiser import Denoiser
from quest.learning import calibration as calibrations
from quest.learning import reconstruction as reconstructions
from quest.learning.calibration import Calibration
from quest.quantization.network import QuantizedNetwork
from quest.sources import pipelines


def quantize(
    model: Any,
    bits: str = "w4a8",
    method: str = "quest",
    *,
    steps: int | None = None,
    eta: float | None = None,
    guidance_scale: float | None = None,
    sampler: SamplerSettings | Mapping[str, Any] | None = None,
    classes: Sequence[int] | None = None,
    prompts: Sequence[str] | Path | None = None,
    calibration: CalibrationSettings | Mapping[str, Any] | None = None,
    quantizer: QuantizerSettings | Mapping[str, Any] | None = None,
    reconstruction: ReconstructionSettings | Mapping[str, Any] | None = None,
    settings: MethodSettings | Mapping[str, Any] | None = None,
    architecture: str | PathLike[str] | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
) -> QuantizedModel:
    """Quantize a model. Needs no data: it calibrates on images that the model itself draws.

    model: a diffusers pipeline (DDPM, DDIM, latent or Stable Diffusion), which stays as it is; a folder of one or its
    hub id; a model artifact (.safetensors); a CompVis checkpoint (.ckpt), with its ``architecture``, a YAML file; or a
    `Denoiser`. bits: of weights and activations, from 2 to 8 each. method: "nearest", "q-diffusion", "ptqd",
    "efficientdm", "tfmq-dm" or "quest".
    steps, eta, guidance_scale: of the sampler that images will be drawn with, for which the activation scales are
    chosen; ``sampler`` has its other settings. classes, prompts: what a conditional model is calibrated on, all of its
    classes unless given; prompts are needed, as a list or a file with one a line.
    calibration, quantizer, reconstruction, settings (of the method): sections of docs/config.md, as typed settings or
    as plain dicts of what to change; the defaults are the papers'. The default counts of recorded steps and of
    activation sets become those nearest that divide the sampling steps.
    device: "auto" takes a GPU when there is one.

    Raises ConfigError or ArtifactError, both ValueErrors, for settings or a model that cannot be used.
    """
    width = width_of(bits)
    given = {"steps": steps, "eta": eta, "guidance_scale": guidance_scale}
    chosen = settings_of(
        method,
        sampler=_plain(sampler) | {key: value for key, value in given.items() if value is not None},
        calibration=_plain(calibration),
        quantizer=_plain(quantizer),
        reconstruction=_plain(reconstruction),
        own=_plain(settings),
    )
    target = resolve(str(device))
    with torch.random.fork_rng([target] if target.type == "cuda" else []):
        torch.manual_seed(seed)
        source = _opened(model, None if architecture is None else Path(architecture))
        among = _choices(source, classes, prompts)
        original = None if source.sha256 else source.copy("cpu", dtype=None)
        denoiser = source.copy(target)
        data = calibrations.record(denoiser, chosen, seed, target, among).to(target)
        network, outcome = _run(denoiser, data, chosen, method, width, seed)
    own, grids = artifacts.plain(chosen.method(method)), artifacts.plain(chosen.quantizer)
    checkpoint = Checkpoint(
        network,
        method,
        sampler=chosen.sampler,
        condition=denoiser.condition,
        correction=outcome.correction,
        settings={"method": own, "quantizer": grids},
        seed=seed,
        inputs={"model": denoiser.sha256},
        notes=outcome.notes,
    )
    return QuantizedModel(checkpoint, denoiser, original)


def _run(
    denoiser: Denoiser, data: Calibration, settings: QuantizationSettings, method: str, bits: Bits, seed: int
) -> tuple[QuantizedNetwork, methods.Outcome]:
    """The network that a method makes of ``denoiser``'s, which is taken over, and what else it has to say."""
    own = settings.method(method)
    rounding, decisions = methods.starts_from(method, own), None
    if rounding is not None:
        decisions = _learned_rounding(denoiser, data, settings, bits.weight, rounding, seed)
    network = QuantizedNetwork(denoiser.network, start.recipe_of(settings, denoiser, method, bits), denoiser.example())
    if decisions is not None:
        reconstructions.put(network, decisions)
    return network, methods.get(method).quantize(network, data, own, seed)


def _learned_rounding(
    denoiser: Denoiser,
    data: Calibration,
    settings: QuantizationSettings,
    weight_bits: int,
    rounding: Rounding,
    seed: int,
) -> dict[str, Tensor]:
    """What was learned of the weights' rounding, on a copy of the network."""
    copied = replace(denoiser, network=copy.deepcopy(denoiser.network))
    network = start.rounding_network(settings, copied, weight_bits, rounding.policy)
    progress = reconstructions.Progress()
    reconstructions.reconstruct(network, data, settings.reconstruction, seed, progress, rounding.grouping)
    return progress.tensors


def width_of(bits: str) -> Bits:
    """Bits of a quantized model. Raises ConfigError for full precision, or what is no bit-width."""
    width = Bits.parse(bits)
    if width == UNQUANTIZED:
        raise ConfigError("bits: w32a32 is full precision; expected bits from 2 to 8, like w4a8")
    return width


def settings_of(
    method: str, *, calibration: Mapping[str, Any], own: Mapping[str, Any], **sections: dict[str, Any]
) -> QuantizationSettings:
    """Typed settings from plain sections, their counts made to divide. own: of the method. Raises ConfigError naming
    each wrong key."""
    if method not in METHODS:
        raise ConfigError(f"method: {unknown(method, METHODS)}")

    def checked(**more: Any) -> QuantizationSettings:
        return validate(QuantizationSettings, sections | more, "quest.quantize")

    default = QuantizationSettings()
    steps = checked().sampler.steps
    calibration = {"steps": divisor(steps, default.calibration.steps)} | dict(calibration)
    recorded = checked(calibration=calibration).calibration.steps
    own = {"sets": divisor(recorded, default.method(method).sets)} | dict(own)
    return checked(calibration=calibration, methods={python_name(method): own})


def divisor(of: int, near: int) -> int:
    """The divisor of ``of`` nearest to ``near``."""
    return min((each for each in range(1, of + 1) if of % each == 0), key=lambda each: abs(each - near))


def _plain(section: Settings | Mapping[str, Any] | None) -> dict[str, Any]:
    """What a section changes."""
    return section.model_dump(exclude_unset=True) if isinstance(section, Settings) else dict(section or {})


def _opened(model: Any, architecture: Path | None) -> Denoiser:
    """The full-precision model, its modules perhaps another's. Raises ArtifactError when it cannot be had."""
    if isinstance(model, Denoiser):
        return model
    if isinstance(model, str | PathLike):
        if Path(model).suffix == ".safetensors":
            return denoisers.load(Path(model))
        return pipelines.open_source(pipelines.locate(str(model), architecture), architecture)
    if hasattr(model, "components"):
        return pipelines.of_pipeline(model)
    raise ValueError(
        f"model: found {model!r:.60}; expected a diffusers pipeline, or the path of one, of a model artifact or a .ckpt"
    )


def _choices(model: Denoiser, classes: Sequence[int] | None, prompts: Sequence[str] | Path | None) -> Any:
    """The conditions to calibrate on. Raises ValueError for those that the model does not take, or has to be given."""
    takes = {"class": "classes", "text": "prompts"}.get(model.condition or "")
    for name, value in {"classes": classes, "prompts": prompts}.items():
        if value is not None and name != takes:
            raise ValueError(f"{name}: given, but the model takes {takes or 'no condition'}; leave them out")
    if isinstance(model.conditioner, ClassLabels):
        return range(model.conditioner.classes) if classes is None else list(classes)
    if isinstance(model.conditioner, TextEncoder):
        if isinstance(prompts, Path):
            return read_prompts(prompts)
        if not prompts or isinstance(prompts, str):
            raise ValueError(
                f"prompts: found {prompts!r}; the model draws what a text says, so expected a list of texts to "
                "calibrate on, or the Path of a file with one a line"
            )
        return list(prompts)
    return None
