"""What a model of one's own is quantized for: its sampler and its condition, as told or as its pipeline has them."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from quest.config.own import OwnSettings
from quest.config.reading import validate
from quest.config.sampling import ConditionSettings, SamplerSettings
from quest.config.values import ConfigError
from quest.deploy import export
from quest.deploy.quantize import divisor
from quest.diffusion.conditioners import ClassLabels, TextEncoder
from quest.diffusion.conditions import read_prompts
from quest.diffusion.denoiser import Denoiser
from quest.own.source import Source


def texts(prompts: Sequence[str] | str | PathLike[str]) -> list[str]:
    """The prompts of a list, or of a file with one a line. Raises ConfigError."""
    if not isinstance(prompts, str | PathLike):
        found = [" ".join(text.split()) for text in prompts]
        if not found or not all(found):
            raise ConfigError(f"prompts: found {prompts!r:.60}; expected texts, none of them empty")
        return found
    try:
        return read_prompts(Path(prompts))
    except ValueError as error:
        raise ConfigError(f"{str(error).replace('condition.prompts', '--prompts')}, saved as UTF-8") from error


def sampler(source: Source, own: OwnSettings, *, steps: int | None, kind: str | None, **given: Any) -> SamplerSettings:
    """How images are drawn: as told, or as the pipeline and the defaults have it. Raises ConfigError."""
    model = source.model
    kind = kind or ("ddim" if given["eta"] else source.sampler)
    schedule: Any = model.scheduler.config
    condition = model.condition or ""
    chosen = {
        "kind": kind,
        "steps": divisor(schedule.num_train_timesteps, own.steps) if steps is None else steps,
        "eta": (0.0 if kind == "plms" else own.eta) if given["eta"] is None else given["eta"],
        "guidance_scale": own.guidance.get(condition, 1.0)  # type: ignore[call-overload]
        if given["guidance_scale"] is None
        else given["guidance_scale"],
    }
    settings = validate(SamplerSettings, chosen, "sampler")
    if settings.guidance_scale != 1 and model.conditioner is None:
        raise ConfigError(
            f"--guidance: found {settings.guidance_scale:g}, but the model takes no condition; leave it out"
        )
    model.sampler(settings)  # whose grid of timesteps may not fit
    return settings


def condition(model: Denoiser, texts: list[str] | None, classes: int | None) -> ConditionSettings | None:
    """What the model is calibrated on. Raises ConfigError for what it does not take, or lacks."""
    takes = {"class": "--classes", "text": "--prompts"}.get(model.condition or "")
    for name, value in {"--classes": classes, "--prompts": texts}.items():
        if value is not None and name != takes:
            raise ConfigError(f"{name}: given, but the model takes {takes or 'no condition'}; leave it out")
    if isinstance(model.conditioner, ClassLabels):
        known = model.conditioner.classes
        if classes is not None and not 1 <= classes <= known:
            raise ConfigError(f"--classes: found {classes}; the model has {known}")
        return ConditionSettings(classes=classes or known)
    if isinstance(model.conditioner, TextEncoder):
        if texts is None:
            raise ConfigError(
                "--prompts: missing; the model draws what a text says, and is calibrated on texts like those it will "
                "be given: a file in UTF-8 with one a line, a few dozen or more"
            )
        return ConditionSettings(prompts=Path("prompts.txt"))
    return None


def check_delivery(model: Denoiser, method: str, sampler: SamplerSettings) -> None:
    """Raises ValueError for what could be quantized, but not packed: better now than in hours."""
    export.check_parts(model)
    predicted = model.sampler(sampler).calls()[0].parametrization.kind
    if method == "ptqd" and predicted != "epsilon":
        raise ConfigError(
            f"--method: ptqd corrects the predicted noise, which a folder can hold only of a network that predicts it, "
            f"but this one predicts {predicted}; take another method"
        )
