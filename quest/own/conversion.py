"""From a model to a low-bit folder with its card: the stages of the workflow, one after another, each kept."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass
from io import StringIO
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from quest import artifacts, methods
from quest.artifacts import Manifest, plain, write_bytes
from quest.bench import resident
from quest.config.dataset import DatasetSettings
from quest.config.methods import METHODS, python_name
from quest.config.own import OwnSettings, own_settings
from quest.config.reading import unknown, validate
from quest.config.sampling import ConditionSettings
from quest.config.values import Bits, ConfigError
from quest.deploy import checkpoints, export, inspection
from quest.deploy.quantize import width_of
from quest.deploy.quantized import QuantizedModel
from quest.device import OutOfMemory, resolve
from quest.diffusion import denoiser as denoisers
from quest.estimate.speed import Speed
from quest.own import card, plan, trial, wishes
from quest.own.plan import Plan, Wanted
from quest.own.source import Source, open_model
from quest.own.work import MODEL, SPEED, Work, working
from quest.stages import calibrate, finetune, reconstruct, sample

log = logging.getLogger(__name__)

_WORDS = {
    "calibrate": "recording calibration data",
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
    its ``architecture``, or a model artifact. prompts: of a model of texts, a list or the path of a file with one a
    line. classes: of a model of classes, the first so many. steps, sampler ("ddim" or "plms"), eta, guidance_scale: how
    images will be drawn; the defaults are those of the pipeline and of `OwnSettings`. budget: minutes, to which what is
    learned is cut; memory: GiB of the device. settings: changes to `OwnSettings`, as plain JSON. base_model: a name
    for the card.

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
    for name, given in {"--budget": budget, "--memory": memory}.items():
        if given is not None and not given > 0:
            raise ConfigError(f"{name}: found {given:g}; expected more than 0")
    texts = None if prompts is None else wishes.texts(prompts)
    export.check_free(output, force)
    target = resolve(str(device))
    source = open_model(model, _path(architecture), _path(scheduler))
    chosen = wishes.sampler(source, own, steps=steps, kind=sampler, eta=eta, guidance_scale=guidance_scale)
    condition = wishes.condition(source.model, texts, classes)
    wishes.check_delivery(source.model, method, chosen)
    with working(output) as work:
        file = _model_file(source, work)
        if texts is not None:
            condition = ConditionSettings(prompts=work.file("prompts.txt"))
        wanted = Wanted(method, bits, chosen, condition)
        limits = {"budget": budget, "memory": memory, "device": target.type}
        asked = {"model": _sha256(file), "method": method, "bits": bits, "seed": seed, "own": plain(own)}
        asked |= {"sampler": plain(chosen), "condition": condition and plain(condition), **limits}
        asked["prompts"] = texts and hashlib.sha256("\n".join(texts).encode()).hexdigest()
        run = _Run(source, wanted, own, file, work, seed, target)
        goes_on = work.begin(asked) and "plan" in work.state
        if texts is not None:
            write_bytes(work.file("prompts.txt"), "".join(f"{text}\n" for text in texts).encode())
        if goes_on:
            log.info("going on with what is in %s", work.folder)
        else:
            run.choose(budget, memory, began)
        return run.through(output, force, base_model, budget, began)


class _Run:
    """The stages of one conversion."""

    def __init__(
        self, source: Source, wanted: Wanted, own: OwnSettings, file: Path, work: Work, seed: int, device: torch.device
    ):
        self.source, self.wanted, self.own = source, wanted, own
        self.file, self.work, self.seed, self.device = file, work, seed, device
        self.full = plan.settings_for(own, source.model, file, wanted)
        self._words: card.Words | None = None

    def choose(self, budget: float | None, memory: float | None, began: float) -> None:
        """Estimate what the whole takes here, and cut it to what there is; the plan is kept."""
        log.info("measuring what a call of this model takes here")
        base = resident.now() if self.device.type == "cpu" else 0.0
        with _without_bars():
            speed = Speed(self.work.file(SPEED), self.device)
            estimate = plan.Estimate(self.source.model, self.full, self.wanted, speed)
        spent = time.monotonic() - began
        if budget is not None and not estimate.known:
            raise ConfigError(
                f"--budget: how long {self.wanted.method} takes is not known, for its calls are not counted yet "
                "(quest/estimate/work.py); leave the budget out, or take another method"
            )
        room = None if memory is None else max(0.0, memory * 2**30 - base)
        found = plan.fitted(estimate, self.full, self.own, budget, room, spent)
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
        self._step("calibrate", [calibration], lambda settings: self._calibrate(settings, calibration))
        if learned is not None:
            self._step(
                "reconstruct",
                [rounding],
                lambda settings: reconstruct.run(
                    plan.NAME,
                    settings,
                    self.file,
                    weight_bits,
                    self.seed,
                    learned.grouping,
                    learned.policy,
                    calibration,
                    rounding,
                    self.device,
                ),
            )
        self._step(
            "finetune",
            [checkpoint],
            lambda settings: finetune.run(
                plan.NAME,
                settings,
                self.file,
                self.wanted.method,
                self.wanted.bits,
                self.seed,
                calibration,
                None if learned is None else rounding,
                checkpoint,
                self.device,
            ),
        )
        self._step("full precision", None, self._full_precision)
        report: dict[str, Any] = {}
        with export.whole(output, force) as folder:
            self._step("trial", None, lambda settings: report.update(self._trial(settings, folder, checkpoint)))
            report |= self._made(output, base_model, budget, time.monotonic() - began)
            assert self._words is not None  # the trial has it
            card.write(folder, report, *self._images, self._words, base_model or self.source.hub_id)
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
            except (torch.OutOfMemoryError, OutOfMemory):
                pass  # what it held is let go of before the next try
            self._halve(name)
        self.work.keep(took=self.work.state["took"] | {name: time.monotonic() - begun})

    def _halve(self, name: str) -> None:
        """Smaller batches for a step that ran out of memory. Raises ConfigError where they cannot be smaller."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        smaller, what = halved(self.settings, name, self.wanted.method)
        if smaller is None:
            raise ConfigError(
                f"{_WORDS[name]}: {self.device} has too little memory even for {what}. What is done is kept; go on "
                "with --device cpu, or where there is more memory"
            )
        log.warning("%s: %s ran out of memory; trying again with %s", _WORDS[name], self.device, what)
        kept = self.work.state["plan"] | {"settings": smaller.model_dump(mode="json", exclude_unset=True)}
        said = f"{what}, since {_WORDS[name]} ran out of memory on {self.device}"
        self.work.keep(plan=kept, halved=[*self.work.state["halved"], said])

    def _calibrate(self, settings: DatasetSettings, output: Path) -> None:
        calibrate.run(plan.NAME, settings, self.file, self.seed, output, self.device)

    def _shards(self, settings: DatasetSettings) -> list[Path]:
        evaluation = settings.evaluation
        # Batches of another size are other files, so that shards of two cuts never mix.
        of = f"{evaluation.images}x{evaluation.shards}"
        return [self.work.file(f"full.{of}.{shard}.safetensors") for shard in range(evaluation.shards)]

    def _full_precision(self, settings: DatasetSettings) -> None:
        for shard, file in enumerate(self._shards(settings)):
            if not file.is_file():
                sample.run(plan.NAME, settings, self.file, None, self.seed, shard, file, self.device)

    def _trial(self, settings: DatasetSettings, folder: Path, checkpoint: Path) -> dict[str, Any]:
        """Pack the network into ``folder``, load it from there, draw with it and time it."""
        loaded = denoisers.load(self.file, "cpu")
        quantized = QuantizedModel(checkpoints.load(checkpoint, loaded), loaded)
        made_of = quantized.checkpoint.sha256
        account = artifacts.read_manifest(checkpoint, "checkpoint").notes["account"]
        if self._words is None:  # or else it is a second try, in smaller batches
            self._words = card.Words(quantized, export.write_pipeline(folder, quantized), account)
        packed, model = trial.loaded(folder, self.device), denoisers.load(self.file, self.device)
        images = trial.drawn(self.work, model, packed, settings, self.seed, made_of)
        full = torch.cat([artifacts.load_tensors(file, "samples").tensors["images"] for file in self._shards(settings)])
        whole, network = _bytes(folder), export.weights_of(folder).stat().st_size
        size = {
            "network_mib": network / 2**20,
            "folder_mib": whole / 2**20,
            "float32_mib": account["full_precision_mib"],
        }
        size |= {"weight_bits": account["mean_weight_bits"], "activation_bits": account["mean_activation_bits"]}
        self._images = full[: self.own.shown], images[: self.own.shown]
        described = inspection.describe(self.file)
        parts = inspection.parts(quantized.network, described)
        return {
            "network": {"class": described.network, "parameters": account["parameters"]},
            "closeness": trial.closeness(images, full),
            "size": size,
            "speed": trial.speed(model, packed, min(4, settings.evaluation.batch_size)),
            **{name: [asdict(each) for each in found] for name, found in parts.items()},
        }

    def _made(self, output: Path, base_model: str | None, budget: float | None, seconds: float) -> dict[str, Any]:
        """How it was made, for the report."""
        manifest = artifacts.read_manifest(self.work.file("checkpoint.safetensors"), "checkpoint")
        (key,) = self.settings.methods.model_fields_set
        own = self.settings.model_dump(mode="json")
        chosen = {name: own[name] for name in ("sampler", "calibration", "quantizer", "reconstruction")}
        took = self.work.state["took"]
        return {
            "folder": str(output),
            "model": base_model or self.source.name,
            "method": self.wanted.method,
            "bits": self.wanted.bits,
            "seed": self.seed,
            "device": str(self.device),
            "settings": chosen | {"condition": own["condition"], f"methods.{key}": own["methods"][key]},
            "budget_minutes": budget,
            "cuts": [*self.plan.cuts, *self.work.state["halved"]],
            "estimated_seconds": self.plan.seconds,
            "took_seconds": took | {"all of this run": seconds},
            "scheduler": self.source.scheduler,
            "model_sha256": _sha256(self.file),
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
    except artifacts.ArtifactError:
        return None


def _sha256(file: Path) -> str:
    """What a model artifact says that it is."""
    return artifacts.read_manifest(file, "model").sha256


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _path(path: str | PathLike[str] | None) -> Path | None:
    return None if path is None else Path(path)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
