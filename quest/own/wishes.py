"""What a model of one's own is quantized for: its sampler and its condition, as told or as its pipeline has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from quest.config.own import OwnSettings
from quest.config.reading import validate
from quest.config.sampling import ConditionSettings, SamplerSettings
from quest.config.values import ConfigError
from quest.deploy import export
from quest.deploy.packed.pipelines import OF_CLASSES
from quest.deploy.quantize import divisor
from quest.diffusion.conditions import read_prompts
from quest.diffusion.denoiser import Denoiser
from quest.own.drawing import FAMILIES, Asked
from quest.own.source import OwnPipeline, Source

FROM_CALLS = ("nearest", "quest", "q-diffusion")
"""Methods that learn from network inputs alone, block by block; the others walk from noise to samples themselves, or
learn what depends on the timestep alone."""


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


def asked(source: OwnPipeline, size: int | None, given: Mapping[str, Any]) -> Asked:
    """How a pipeline that draws by itself is called. given: steps, kind, eta, guidance_scale. Raises ConfigError."""
    for name, value in {"--sampler": given["kind"], "--eta": given["eta"]}.items():
        if value is not None:
            raise ConfigError(
                f"{name}: found {value}, but this pipeline draws by its own call and scheduler ({source.scheduler}); "
                "leave it out"
            )
    scale = given["guidance_scale"]
    if scale is not None and source.family is FAMILIES[OF_CLASSES]:
        raise ConfigError(
            f"--guidance: found {scale:g}, but diffusers' class embedding has no class for none; leave it out"
        )
    if size is not None and source.takes == "class":
        raise ConfigError(f"size: found {size}, but a model of classes draws images of one size; leave it out")
    return Asked(given["steps"], scale, size)


def condition(source: Source | OwnPipeline, texts: list[str] | None, classes: int | None) -> ConditionSettings | None:
    """What the model is calibrated on. Raises ConfigError for what it does not take, or lacks."""
    takes = {"class": "--classes", "text": "--prompts"}.get(source.takes or "")
    for name, value in {"--classes": classes, "--prompts": texts}.items():
        if value is not None and name != takes:
            raise ConfigError(f"{name}: given, but the model takes {takes or 'no condition'}; leave it out")
    if source.takes == "class":
        known = source.classes
        if classes is not None and not 1 <= classes <= known:
            raise ConfigError(f"--classes: found {classes}; the model has {known}")
        return ConditionSettings(classes=classes or known)
    if source.takes == "text":
        if texts is None:
            raise ConfigError(
                "--prompts: missing; the model draws what a text says, and is calibrated on texts like those it will "
                "be given: a file in UTF-8 with one a line, a few dozen or more"
            )
        return ConditionSettings(prompts=Path("prompts.txt"))
    return None


def check_method(method: str) -> None:
    """Raises ConfigError for a method that cannot learn from what a pipeline told its network."""
    if method not in FROM_CALLS:
        raise ConfigError(
            f"--method: {method} cannot learn from a pipeline that draws by itself, of which only the inputs of its "
            f"network are known; take one of {', '.join(FROM_CALLS)}"
        )


def check_delivery(model: Denoiser, method: str, sampler: SamplerSettings) -> None:
    """Raises ValueError for what could be quantized, but not packed: better now than in hours."""
    export.check_parts(model)
    predicted = model.sampler(sampler).calls()[0].parametrization.kind
    if method == "ptqd" and predicted != "epsilon":
        raise ConfigError(
            f"--method: ptqd corrects the predicted noise, which a folder can hold only of a network that predicts it, "
            f"but this one predicts {predicted}; take another method"
        )
