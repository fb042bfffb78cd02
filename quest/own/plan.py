"""How much is learned: the defaults, cut down openly to the minutes and the memory that there are.

What a run takes is `quest estimate`'s model of it: calls of the network counted from the settings, timed here. A budget
of minutes cuts all counts that may be cut (`OwnSettings.least`) by one factor, and raises the rate of learned rounding
as its iterations fall; one of memory cuts samples that are cached, and batches but those of methods that train through
the whole network: such a step computes again what does not fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from quest import methods
from quest.artifacts import plain
from quest.config.dataset import DatasetSettings
from quest.config.methods import python_name
from quest.config.own import OwnSettings
from quest.config.reading import merged, validate
from quest.config.sampling import ConditionSettings, SamplerSettings
from quest.config.values import FULL_PRECISION, ConfigError
from quest.deploy.quantize import divisor
from quest.diffusion.denoiser import Denoiser
from quest.estimate import costs, work
from quest.estimate import methods as counted_methods
from quest.estimate.costs import Cost, Estimator
from quest.estimate.networks import Model
from quest.estimate.plan import Job
from quest.estimate.speed import Network, Speed

NAME = "own"
_FASTEST = 0.1  # rate of learned rounding; at higher ones it was never tried
_FACTOR = 0.9  # between one try of a cut and the next
_TRIES = 120
_BATCHES = ("batch_size", "tla_batch_size", "cma_batch_size")
_CACHED = ("samples", "samples_per_step", "tla_samples", "cma_samples")


class Wanted(NamedTuple):
    """What a model is quantized to, and by what."""

    method: str
    bits: str
    sampler: SamplerSettings
    condition: ConditionSettings | None


@dataclass(frozen=True)
class Plan:
    """settings: of the stages. seconds: of each step, as estimated. memory: bytes that the largest of them needs.
    cuts: what was made smaller, a sentence each. reckoned: whether the network was too large to be timed. known:
    whether the method's calls could be counted."""

    settings: DatasetSettings
    seconds: dict[str, float]
    memory: float
    cuts: list[str]
    reckoned: bool = False
    known: bool = True

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def settings_for(own: OwnSettings, images: tuple[int, int], file: Path, wanted: Wanted) -> DatasetSettings:
    """The settings of the stages that make ``wanted`` of the model in ``file``, nothing cut. images: channels and side
    of what it draws. Raises ConfigError."""
    recorded = divisor(wanted.sampler.steps, own.calibration.steps)
    key = python_name(wanted.method)
    method = plain(getattr(own.methods, key))
    method["sets"] = divisor(recorded, method["sets"])
    channels, size = images
    content = {
        "title": "a model of one's own",
        "model": file,
        "extractor": "none",  # nothing is measured by features
        "image_size": size,
        "image_channels": channels,
        "condition": None if wanted.condition is None else plain(wanted.condition),
        "sampler": plain(wanted.sampler),
        "calibration": plain(own.calibration) | {"steps": recorded},
        "quantizer": plain(own.quantizer),
        "reconstruction": plain(own.reconstruction),
        "methods": {key: method},
        "evaluation": {"images": own.images, "batch_size": min(own.batch_size, own.images)},
    }
    return with_shards(validate(DatasetSettings, content, "quest quantize"))


def with_shards(settings: DatasetSettings) -> DatasetSettings:
    """As many shards as batches, so that a batch that was drawn is kept."""
    evaluation = settings.evaluation
    return changed(settings, {"evaluation": {"shards": -(-evaluation.images // evaluation.batch_size)}})


def changed(settings: DatasetSettings, changes: Mapping[str, Any]) -> DatasetSettings:
    """The same settings with ``changes``, section by section."""
    return validate(DatasetSettings, merged(settings.model_dump(mode="json", exclude_unset=True), changes), "the plan")


class Estimate:
    """What steps take here, of one model and method.

    model: of `quest.estimate.networks`, taken over. speed: of this machine; what it lacks is measured when this is
    made, on as many threads as the work will have. known: whether all of its calls could be counted. trains: whether
    the method has steps through the whole network.
    """

    def __init__(self, model: Model, settings: DatasetSettings, wanted: Wanted, speed: Speed):
        self._wanted, self._threads = wanted, torch.get_num_threads()
        network = Network(NAME, settings, model)
        counted = [self._counted(job) for _, job in self._jobs(settings)]
        asked = sum((each for each in counted if each is not None), work.Work())
        self._estimator: Estimator = costs.measured({NAME: asked}, {NAME: network}, speed)
        self.known = None not in counted
        self.trains = any(call.kind in counted_methods.kinds() for call in asked)

    def plan(self, settings: DatasetSettings, full: DatasetSettings, room: float = math.inf) -> Plan:
        """What ``settings`` cost, and what they have less of than ``full``. room: bytes, of which steps through the
        whole network take what is left."""
        jobs = dict(self._jobs(settings))
        found = {name: self._cost(job) for name, job in jobs.items()}
        memory = max(self._memory(job, found[name], room) for name, job in jobs.items())
        reckoned = any(each.reckoned for each in found.values())
        seconds = {name: each.seconds for name, each in found.items()}
        return Plan(settings, seconds, memory, list(differences(full, settings)), reckoned, self.known)

    def _jobs(self, settings: DatasetSettings) -> Iterator[tuple[str, Job]]:
        method, bits = self._wanted.method, self._wanted.bits
        whole = changed(settings, {"evaluation": {"shards": 1}})
        rules = {"calibrate": {}, "reconstruct": {}, "finetune": {"method": method, "bits": bits}}
        if methods.starts_from(method, settings.method(method)) is None:
            del rules["reconstruct"]
        for rule, wildcards in rules.items():
            yield rule, self._job(rule, wildcards, settings)
        for name, which in (("full precision", FULL_PRECISION), ("trial", method)):
            yield name, self._job("sample", {"method": which, "shard": "0"}, whole)

    def _job(self, rule: str, wildcards: dict[str, str], settings: DatasetSettings) -> Job:
        return Job(rule, (), {"dataset": NAME} | wildcards, settings, threads=self._threads)

    def _counted(self, job: Job) -> work.Work | None:
        try:
            return work.of(job)
        except ConfigError:  # a method whose calls nobody has counted yet
            return None

    def _memory(self, job: Job, whole: Cost, room: float) -> float:
        rest = self._cost(job, but_training=True)
        if self._estimator.speed.device.type == "cuda":
            return min(whole.gpu_memory, max(rest.gpu_memory, room))
        return min(whole.memory, max(rest.memory, room))

    def _cost(self, job: Job, *, but_training: bool = False) -> Cost:
        try:
            return self._estimator.work(job, but_training=but_training)
        except ConfigError:
            return Cost(0.0, 0.0, 0.0, 0.0, 0.0)


def fitted(
    estimate: Estimate,
    full: DatasetSettings,
    own: OwnSettings,
    minutes: float | None = None,
    memory: float | None = None,
    spent: float = 0.0,
) -> Plan:
    """The largest plan that fits into ``minutes``, of which ``spent`` seconds are gone, and bytes of ``memory``, None
    for any.

    Raises ConfigError, saying what the least would take, where even that does not fit.
    """
    room = math.inf if memory is None else memory
    plan = estimate.plan(full, full, room)
    if memory is not None and plan.memory > memory:
        plan = _least(
            plan,
            (estimate.plan(each, full, room) for each in _shrunk(full, own, memory_only=True, spared=estimate.trains)),
            lambda found: found.memory <= memory,
            lambda found: (
                f"--memory: {memory / 2**30:.2g} GiB; the least that this model takes here is about "
                f"{found.memory / 2**30:.2g} GiB"
            ),
        )
    if minutes is not None and plan.total > (seconds := minutes * 60 * own.share - spent):
        plan = _least(
            plan,
            (estimate.plan(each, full, room) for each in _shrunk(plan.settings, own, memory_only=False)),
            lambda found: found.total <= seconds,
            lambda found: (
                f"--budget: {minutes:g} minutes; the least that this method takes here is about "
                f"{math.ceil((found.total + spent) / own.share / 6) / 10:g}. Give that, or fewer --steps, or "
                "--method nearest"
            ),
        )
    return plan


def _least(first: Plan, plans: Iterable[Plan], fits: Callable[[Plan], bool], refusal: Callable[[Plan], str]) -> Plan:
    """The first of ``plans`` that ``fits``; ``first`` is known not to."""
    plan = first
    for plan in plans:
        if fits(plan):
            return plan
    raise ConfigError(refusal(plan))


def _shrunk(
    settings: DatasetSettings, own: OwnSettings, *, memory_only: bool, spared: bool = False
) -> Iterator[DatasetSettings]:
    """The settings with less and less, until nothing can be cut further. spared: the method's batches."""
    before = settings
    for number in range(1, _TRIES):
        smaller = _cut(settings, own, _FACTOR**number, memory_only, spared)
        if smaller != before:
            yield smaller
        before = smaller


def _cut(
    settings: DatasetSettings, own: OwnSettings, factor: float, memory_only: bool, spared: bool
) -> DatasetSettings:
    """Every count that may be cut times ``factor``."""
    (key,) = settings.methods.model_fields_set
    content = settings.model_dump(mode="json")
    sections = {
        "calibration": content["calibration"],
        "reconstruction": content["reconstruction"],
        key: content["methods"][key],
    }
    changes: dict[str, Any] = {}
    for name, section in sections.items():
        least = {each: own.least.get(each, 0) for each in section}
        if memory_only:
            batches = [] if spared and name == key else [each for each in _BATCHES if each in section]
            least = {each: value for each, value in least.items() if each in _CACHED} | dict.fromkeys(batches, 1)
        changes[name] = {
            each: max(min(floor, section[each]), round(section[each] * factor))
            for each, floor in least.items()
            if floor and isinstance(section[each], int)
        }
    fewer = changes["reconstruction"].get("iterations")
    if fewer:
        raised = settings.reconstruction.lr * settings.reconstruction.iterations / fewer
        changes["reconstruction"]["lr"] = max(settings.reconstruction.lr, min(_FASTEST, raised))
    found: dict[str, Any] = {name: changes[name] for name in ("calibration", "reconstruction")}
    evaluation = settings.evaluation
    drawn = {"batch_size": max(1, round(evaluation.batch_size * factor))}
    if not memory_only:
        fewest = min(own.least.get("images", evaluation.images), evaluation.images)
        drawn = {"images": max(2, fewest, round(evaluation.images * factor))}
    return with_shards(changed(settings, found | {"methods": {key: changes[key]}, "evaluation": drawn}))


def differences(full: DatasetSettings, settings: DatasetSettings) -> Iterator[str]:
    """What ``settings`` have otherwise than ``full``, by key."""
    yield from _differences(full.model_dump(mode="json"), settings.model_dump(mode="json"), "")


def _differences(full: Mapping[str, Any], other: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, value in full.items():
        found = other[key]
        if isinstance(value, dict) and isinstance(found, dict):
            yield from _differences(value, found, f"{prefix}{key}.")
        elif value != found and key != "shards":
            yield f"{prefix}{key}: {_written(found)} instead of {_written(value)}"


def _written(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if isinstance(value, float) else str(value)


def images_of(model: Denoiser) -> tuple[int, int]:
    """Channels and side of the images that a model draws."""
    channels, side, _ = model.shape
    if model.first_stage is None:
        return channels, side
    config: Any = model.first_stage.network.config
    return config.out_channels, side * 2 ** (len(config.block_out_channels) - 1)
