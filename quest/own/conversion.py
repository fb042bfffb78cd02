"""From a model to a low-bit folder with its card: the stages of the workflow, one after another, each kept."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass, replace
from io import StringIO
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch

from quest import artifacts, methods, resident
from quest.artifacts import plain, write_bytes
from quest.config.dataset import DatasetSettings
from quest.config.methods import METHODS, python_name
from quest.config.own import OwnSettings, own_settings
from quest.config.reading import unknown, validate
from quest.config.sampling import ConditionSettings
from quest.config.values import Bits, ConfigError
from quest.deploy import export, inspection
from quest.deploy.quantize import width_of
from quest.device import OutOfMemory, limited, resolve
from quest.estimate.speed import Speed
from quest.own import card, plan, trial, wishes
from quest.own import choice as choices
from quest.own.around import AroundPipeline
from quest.own.choice import Wish
from quest.own.chosen import ByLayers
from quest.own.plan import Plan, Wanted
from quest.own.source import OwnPipeline, Source, open_model
from quest.own.steps import ByStages, Steps
from quest.own.trial import Trial
from quest.own.work import SPEED, Work, working

log = logging.getLogger(__name__)

_WORDS = {
    "calibrate": "recording calibration data",
    "choose": "choosing the bits of each layer",
    "reconstruct": "learning the rounding of the weights",
    "finetune": "finetuning",
    "full precision": "drawing in full precision",
    "trial": "packing, drawing and timing",
}


@dataclass(frozen=True)
class Converted:
    """folder: loads by diffusers' ``from_pretrained`` after `import quest`. report: all that its card says, as JSON."""

    folder: Path
    report: dict[str, Any]


def convert(
    model: Any,
    output: str | PathLike[str],
    *,
    bits: str | None = None,
    size: float | None = None,
    psnr: float | None = None,
    method: str | None = None,
    prompts: Sequence[str] | str | PathLike[str] | None = None,
    classes: int | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    eta: float | None = None,
    guidance_scale: float | None = None,
    budget: float | None = None,
    memory: float | None = None,
    force: bool = False,
    architecture: str | PathLike[str] | None = None,
    scheduler: str | PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    base_model: str | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
) -> Converted:
    """Quantize ``model`` and write it to the folder ``output``, with a card of what that cost.

    model: a diffusers pipeline, which stays as it is, its folder or its U-Net's, a hub id, a CompVis checkpoint with
    its ``architecture``, or a model artifact. size: of the packed network, as a share of its float16 weights, or psnr:
    to full precision in dB; with one of them each layer has weight bits of its own, at most those of ``bits``.
    prompts: of a model of texts, a list or the path of a file with one a line. classes: of a model of classes, the
    first so many. steps, sampler ("ddim" or "plms"), eta, guidance_scale: how images will be drawn; the defaults are
    those of the pipeline and of `OwnSettings`, and a pipeline that draws by itself (`quest.own.drawing`) has the first
    and last alone. budget: minutes, to which what is learned is cut; memory: GiB of the device, within which training
    computes again what does not fit. settings: changes to `OwnSettings`, as plain JSON. base_model: a name for
    the card.

    What is done so far is kept in ``<output>.work`` until all of it is; the same call goes on from there. Raises
    ConfigError or ArtifactError, both ValueErrors, for a model, settings or an output that cannot be used, before any
    work; ConfigError without a ``budget`` where the work would take longer than a day.
    """
    output, began = Path(output), time.monotonic()
    own = own_settings(settings or {}, "settings")
    bits, method = bits or own.bits, method or own.method
    width_of(bits)
    if method not in METHODS:
        raise ConfigError(f"--method: {unknown(method, METHODS)}")
    wish = choices.wish(size, psnr)
    for name, given in {"--budget": budget, "--memory": memory}.items():
        if given is not None and not given > 0:
            raise ConfigError(f"{name}: found {given:g}; expected more than 0")
    texts = None if prompts is None else wishes.texts(prompts)
    export.check_free(output, force)
    target = resolve(str(device))
    source = open_model(model, _path(architecture), _path(scheduler))
    condition = wishes.condition(source, texts, classes)
    given = {"steps": steps, "kind": sampler, "eta": eta, "guidance_scale": guidance_scale}
    wants = _Wants(method, bits, wish, condition, texts, given)
    with _begun(source, own, wants, output, seed, target) as (work, todo):
        if texts is not None:
            condition = ConditionSettings(prompts=work.file("prompts.txt"))
        wanted = Wanted(method, bits, todo.sampler, condition)
        limits = {"budget": budget, "memory": memory, "device": target.type}
        asked = {"model": todo.sha256, "method": method, "bits": bits, "seed": seed, "own": plain(own)}
        asked |= {"sampler": plain(todo.sampler), "condition": condition and plain(condition), **limits}
        asked |= {"call": todo.call, "prompts": texts and hashlib.sha256("\n".join(texts).encode()).hexdigest()}
        if wish is not None:
            asked["wish"] = wish._asdict()
        run = _Run(source, todo, wanted, own, work, seed, target)
        goes_on = work.begin(asked) and "plan" in work.state
        if texts is not None:
            write_bytes(work.file("prompts.txt"), "".join(f"{text}\n" for text in texts).encode())
        if goes_on:
            log.info("going on with what is in %s", work.folder)
        else:
            run.choose(budget, memory, began)
        with limited(memory):
            return run.through(output, force, base_model, budget, began)


class _Wants(NamedTuple):
    """What was asked for, before the model says how it draws. sampling: how, None for what was not said."""

    method: str
    bits: str
    wish: Wish | None
    condition: ConditionSettings | None
    texts: list[str] | None
    sampling: Mapping[str, Any]


@contextmanager
def _begun(
    source: Source | OwnPipeline, own: OwnSettings, wants: _Wants, output: Path, seed: int, device: torch.device
) -> Iterator[tuple[Work, Steps]]:
    """The folder of the work and what is to be done in it. Raises ValueError, before the folder is there where the
    configuration tells it."""
    if isinstance(source, Source):
        if own.size is not None:
            raise ConfigError(f"size: found {own.size}, but this model draws images of one size here; leave it out")
        sampler = wishes.sampler(source, own, **wants.sampling)
        wishes.check_delivery(source.model, wants.method, sampler)
        candidates = None
        if wants.wish is not None:
            wanted = Wanted(wants.method, wants.bits, sampler, wants.condition)
            of_all = plan.settings_for(own, plan.images_of(source.model), Path("model"), wanted)
            candidates = choices.candidates(source.model, of_all, wants.method, Bits.parse(wants.bits))
            choices.check(wants.wish, candidates)
        with working(output) as work:
            given = source, sampler, work, seed, device
            if wants.wish is None or candidates is None:
                yield work, ByStages(*given)
            else:
                yield work, ByLayers(*given, wants.wish, candidates)
        return
    if wants.wish is not None:
        raise ConfigError(
            f"{wants.wish}: how much each layer matters is measured along a sampler of this library, and {source.name} "
            "draws by its own; --bits gives all layers the same"
        )
    asked = wishes.asked(source, own.size, wants.sampling)
    wishes.check_method(wants.method)
    assert wants.condition is not None  # all of these are conditional
    with working(output) as work:
        todo = AroundPipeline(source, asked, work, seed, device)
        todo.rehearse(wants.texts[0] if wants.texts else 0)
        yield work, todo


class _Run:
    """The stages of one conversion."""

    def __init__(
        self,
        source: Source | OwnPipeline,
        todo: Steps,
        wanted: Wanted,
        own: OwnSettings,
        work: Work,
        seed: int,
        device: torch.device,
    ):
        self.source, self.todo, self.wanted, self.own = source, todo, wanted, own
        self.work, self.seed, self.device = work, seed, device
        self.full = plan.settings_for(own, todo.images, todo.file, wanted)
        self.layers = todo if isinstance(todo, ByLayers) else None

    def choose(self, budget: float | None, memory: float | None, began: float) -> None:
        """Estimate what the whole takes here, and cut it to what there is; the plan is kept."""
        log.info("measuring what a call of this model takes here")
        base = resident.now() if self.device.type == "cpu" else 0.0
        with _without_bars():
            speed = Speed(self.work.file(SPEED), self.device)
            estimate = plan.Estimate(self.todo.estimated(), self.full, self.wanted, speed)
        spent = time.monotonic() - began
        searching = self._searching(estimate)
        if budget is not None and not estimate.known:
            raise ConfigError(
                f"--budget: how long {self.wanted.method} takes is not known, for its calls are not counted yet "
                "(quest/estimate/work.py); leave the budget out, or take another method"
            )
        room = None if memory is None else max(0.0, memory * 2**30 - base)
        found = plan.fitted(estimate, self.full, self.own, budget, room, spent + sum(searching.values()))
        calibrating, *rest = found.seconds.items()
        found = replace(found, seconds=dict([calibrating, *searching.items(), *rest]))
        if budget is None and found.total > self.own.longest_hours * 3600:
            raise ConfigError(
                f"this would take about {_time(found.total)} on {self.device}, longer than "
                f"{self.own.longest_hours:g} hours: give --budget MINUTES, to which the learning is cut openly, or "
                "--method nearest, which learns nothing" + (" (an extrapolation)" if found.reckoned else "")
            )
        log.info(
            "about %s%s, %.1f GiB", _time(found.total), "*" if found.reckoned else "", (found.memory + base) / 2**30
        )
        for cut in found.cuts:
            log.info("cut: %s", cut)
        kept = {"settings": found.settings.model_dump(mode="json", exclude_unset=True), "seconds": found.seconds}
        kept |= {"memory": found.memory + base, "cuts": found.cuts, "reckoned": found.reckoned, "known": found.known}
        self.work.keep(plan=kept, took={"measuring": spent}, halved=[])

    def _searching(self, estimate: plan.Estimate) -> dict[str, float]:
        """Seconds of choosing bits, where they are chosen, from what calibration takes for a sample of a step."""
        if self.layers is None:
            return {}
        calibration, steps = self.full.calibration, self.full.sampler.steps
        each = estimate.plan(self.full, self.full).seconds["calibrate"] / (calibration.samples_per_step * steps)
        return {"choose": each * choices.samples(self.layers.wish, self.layers.candidates, self.full)}

    @property
    def plan(self) -> Plan:
        kept = self.work.state["plan"]
        settings = validate(DatasetSettings, kept["settings"], str(self.work.folder))
        return Plan(settings, kept["seconds"], kept["memory"], kept["cuts"], kept["reckoned"], kept["known"])

    @property
    def settings(self) -> DatasetSettings:
        return self.plan.settings

    def through(
        self, output: Path, force: bool, base_model: str | None, budget: float | None, began: float
    ) -> Converted:
        """All steps that are not done yet; the folder and its report."""
        calibration, rounding = self.work.file("calibration.safetensors"), self.work.file("rounding.safetensors")
        checkpoint = self.work.file("checkpoint.safetensors")
        learned = methods.starts_from(self.wanted.method, self.settings.method(self.wanted.method))
        weight_bits = Bits.parse(self.wanted.bits).weight
        todo, method, bits = self.todo, self.wanted.method, self.wanted.bits
        self._step("calibrate", [calibration], lambda settings: todo.calibrate(settings, calibration))
        if (layers := self.layers) is not None and not layers.chosen:
            self._step("choose", None, lambda settings: layers.choose(settings, calibration))
        if learned is not None:
            self._step(
                "reconstruct",
                [rounding],
                lambda settings: todo.reconstruct(settings, weight_bits, learned, calibration, rounding),
            )
        start = None if learned is None else rounding
        self._step(
            "finetune",
            [checkpoint],
            lambda settings: todo.finetune(settings, method, bits, calibration, start, checkpoint),
        )
        self._step("full precision", None, todo.full_precision)
        with export.whole(output, force) as folder:
            found: list[Trial] = []
            self._step(
                "trial", None, lambda settings: found.append(todo.trial(settings, folder, calibration, checkpoint))
            )
            (came_out,) = found
            report = self._measured(came_out, folder) | self._made(output, base_model, budget, time.monotonic() - began)
            report |= {"bits": came_out.words.model.label}
            shown = slice(self.own.shown)
            full, images = came_out.full[shown], came_out.images[shown]
            card.write(folder, report, full, images, came_out.words, base_model or self.source.hub_id)
        return Converted(output, report)

    def _step(self, name: str, files: list[Path] | None, run: Callable[[DatasetSettings], Any]) -> None:
        """Run a step unless its files are there; in smaller batches where the device's memory is too small."""
        if files and all(file.is_file() for file in files):
            return
        steps = list(self.plan.seconds)
        left = sum(self.plan.seconds[each] for each in steps[steps.index(name) :])
        log.info(
            "%d of %d, %s: about %s of %s that are left",
            steps.index(name) + 1,
            len(steps),
            _WORDS[name],
            _time(self.plan.seconds[name]),
            _time(left),
        )
        begun = time.monotonic()
        while True:
            try:
                run(self.settings)
                break
            except (torch.OutOfMemoryError, OutOfMemory) as error:
                told = str(error)  # alone: what it held is let go of before the next try
            self._halve(name, told)
        self.work.keep(took=self.work.state["took"] | {name: time.monotonic() - begun})

    def _halve(self, name: str, told: str) -> None:
        """Smaller batches for a step that ran out of memory, as it ``told``. Raises ConfigError where they cannot be
        smaller."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        smaller, what = halved(self.settings, name, self.wanted.method)
        if smaller is None:
            raise ConfigError(
                f"{_WORDS[name]}: {self.device} has too little memory even for {what}. What is done is kept; go on "
                f"with --device cpu, or where there is more memory. It said: {told}"
            )
        log.warning("%s: %s ran out of memory; trying again with %s", _WORDS[name], self.device, what)
        kept = self.work.state["plan"] | {"settings": smaller.model_dump(mode="json", exclude_unset=True)}
        said = f"{what}, since {_WORDS[name]} ran out of memory on {self.device}"
        self.work.keep(plan=kept, halved=[*self.work.state["halved"], said])

    def _measured(self, found: Trial, folder: Path) -> dict[str, Any]:
        """What the folder is like, for the report."""
        account, quantized = found.words.account, found.words.model
        size = {
            "network_mib": export.weights_of(folder).stat().st_size / 2**20,
            "folder_mib": _bytes(folder) / 2**20,
            "float32_mib": account["full_precision_mib"],
        }
        size |= {"weight_bits": account["mean_weight_bits"], "activation_bits": account["mean_activation_bits"]}
        described = inspection.describe(self.todo.file)
        parts = inspection.parts(quantized.network, described)
        return {
            "network": {"class": described.network, "parameters": account["parameters"]},
            "closeness": trial.closeness(found.images, found.full),
            "size": size,
            "speed": found.speed,
            **{name: [asdict(each) for each in rows] for name, rows in parts.items()},
        }

    def _made(self, output: Path, base_model: str | None, budget: float | None, seconds: float) -> dict[str, Any]:
        """How it was made, for the report."""
        manifest = artifacts.read_manifest(self.work.file("checkpoint.safetensors"), "checkpoint")
        (key,) = self.settings.methods.model_fields_set
        own = self.settings.model_dump(mode="json")
        chosen = {name: own[name] for name in ("calibration", "quantizer", "reconstruction")}
        took = self.work.state["took"]
        return {
            "folder": str(output),
            "model": base_model or self.source.name,
            "method": self.wanted.method,
            "mixed": self.layers and self.layers.mixture(self.wanted.bits),
            "seed": self.seed,
            "device": str(self.device),
            "settings": {"sampler": self.todo.call}
            | chosen
            | {"condition": own["condition"], f"methods.{key}": own["methods"][key]},
            "budget_minutes": budget,
            "cuts": [*self.plan.cuts, *self.work.state["halved"]],
            "estimated_seconds": self.plan.seconds,
            "took_seconds": took | {"all of this run": seconds},
            "scheduler": self.source.scheduler,
            "calibrated_by": self.todo.drawn_by,
            "model_sha256": self.todo.sha256,
            "versions": manifest.versions,
        }


@contextmanager
def _without_bars() -> Iterator[None]:
    """Within, the steps that are timed show no bars and say nothing of what they learn."""
    learning = logging.getLogger("quest.learning")
    level = learning.level
    learning.setLevel(logging.WARNING)
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        learning.setLevel(level)


def halved(settings: DatasetSettings, step: str, method: str) -> tuple[DatasetSettings | None, str]:
    """The settings with the batches of a step half as large, and what those are; None where they are of one sample."""
    key = python_name(method)
    if step in ("full precision", "trial"):
        found, where = {"batch_size": settings.evaluation.batch_size}, ("evaluation",)
    elif step == "calibrate":  # in batches of all of them, up to 64
        found, where = {"samples_per_step": settings.calibration.samples_per_step}, ("calibration",)
    elif step == "reconstruct":
        found, where = {"batch_size": settings.reconstruction.batch_size}, ("reconstruction",)
    else:
        own, where = plain(settings.method(method)), ("methods", key)
        found = {name: own[name] for name in own if name.endswith("batch_size")}
    words = " and ".join(f"{'.'.join(where)}.{name} {value}" for name, value in found.items()) or "this method"
    if all(value == 1 for value in found.values()):
        return None, words
    fewer = {name: max(1, value // 2) for name, value in found.items()}
    words = " and ".join(f"{'.'.join(where)}.{name} {value}" for name, value in fewer.items())
    changes: dict[str, Any] = fewer
    for part in reversed(where):
        changes = {part: changes}
    return plan.with_shards(plan.changed(settings, changes)), words


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _path(path: str | PathLike[str] | None) -> Path | None:
    return None if path is None else Path(path)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
