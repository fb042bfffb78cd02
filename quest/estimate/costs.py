"""Seconds, memory and disk of jobs: what they do (`work`) times what that takes here (`speed`); sizes from shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from quest.config.dataset import DatasetSettings, load_dataset
from quest.config.learning import CacheSettings
from quest.config.values import Bits
from quest.estimate import methods, networks, unitwise, work
from quest.estimate import speed as speeds
from quest.estimate.calls import Took
from quest.estimate.networks import Size
from quest.estimate.plan import Job
from quest.estimate.speed import Network, Speed
from quest.estimate.work import Work

_FLOAT, _DOUBLE = 4, 8  # bytes
_INCEPTION_WIDTHS = (2048, 2023)  # pooled and spatial features
_SMALL_WIDTHS = (64, 128)  # of an embedded extractor
_PREVIEWED, _KNOWN = 64, 10_000  # images of a preview, and of the reference whose features are kept
_TEXT = 20_000  # bytes of a table, a row of metrics or a record, with Snakemake's log and record
_PICTURE = 500_000


class Cost(NamedTuple):
    """seconds: on a machine that does nothing else; computing: of all threads together. memory: bytes of the host;
    gpu_memory: of the device. disk: bytes that are written and stay. reckoned: whether the network was too large to be
    timed."""

    seconds: float
    computing: float
    memory: float
    gpu_memory: float
    disk: float
    reckoned: bool = False


@dataclass(frozen=True)
class Estimator:
    """speed: of this machine. networks: of each dataset of the run. reference: what stands in for too large ones."""

    speed: Speed
    networks: Mapping[str, Network]
    reference: Network | None

    def cost(self, job: Job) -> Cost:
        """The cost of a job, which begins with the start of its process."""
        if job.rule == "bring":  # it only looks
            return Cost(0.0, 0.0, 0.0, 0.0, 0.0)
        return self._cost(job, self.speed.start(job.rule))

    def work(self, job: Job, *, but_training: bool = False) -> Cost:
        """The cost of what a job does, in a process that has begun. but_training: its memory without that of steps
        through a whole network, which a limit makes as small as it has to be (`quest.learning.recomputing`)."""
        return self._cost(job, Took(0.0, 0.0), but_training)

    def _cost(self, job: Job, start: Took, but_training: bool = False) -> Cost:
        network = self.networks.get(job.dataset or "")
        if network is None or job.settings is None:
            return Cost(start.seconds, start.seconds, start.bytes, 0.0, _disk(job, None, None))
        size, settings = network.size, job.settings
        calls = work.of(job)
        took = {call: self.speed.took(network, call, self.reference) for call in calls}
        seconds = sum(count * took[call].seconds for call, count in calls.items())
        on_gpu = self.speed.device.type == "cuda"
        held, spilled = _held(job, settings, size)
        others = [took[call] for call in took if not (but_training and call.kind in methods.kinds())]
        most = max((each.bytes for each in others), default=0.0)
        own = size.all_parameters * _FLOAT * _COPIES.get(job.rule, 0)
        return Cost(
            seconds=start.seconds + seconds / (1 if on_gpu else job.threads),
            computing=start.seconds + seconds,
            memory=start.bytes + spilled + (_shards(job, settings) if on_gpu else own + most + held),
            gpu_memory=own + most + held if on_gpu else 0.0,
            disk=_disk(job, settings, size),
            reckoned=bool(calls) and not self.speed.measured(network),
        )


# Of all weights, in memory: beside the network's own those on their grids, gradients, a teacher's, or the file's.
_COPIES = {
    "import_model": 2,
    "pretrain": 5,
    "pretrain_denoiser": 5,
    "calibrate": 1,
    "reconstruct": 3,
    "finetune": 3,
    "sample": 2,
}


def prepare(jobs: Sequence[Job], speed: Speed) -> Estimator:
    """Look at the networks of the run, and measure what this machine's speed lacks for its jobs."""
    asked: dict[str, Work] = {}
    for job in jobs:
        if job.dataset is not None:
            asked.setdefault(job.dataset, Work()).update(work.of(job))
    known = {}
    for dataset in asked:
        settings = load_dataset(dataset)
        known[dataset] = Network(dataset, settings, networks.model(dataset, settings))
    for job in jobs:
        speed.start(job.rule)
    return measured(asked, known, speed)


def measured(asked: Mapping[str, Work], known: Mapping[str, Network], speed: Speed) -> Estimator:
    """Time what is missing of the calls ``asked`` of each network."""
    large = [name for name in asked if not speed.measured(known[name])]
    reference = None
    for dataset in asked:
        if dataset not in large:
            speed.measure(known[dataset], asked[dataset])
    if large:
        timed = [known[name] for name in asked if name not in large]
        reference = max(timed, key=lambda network: network.size.flops, default=None)
        if reference is None or reference.size.flops < speeds.REFERENCE_FLOPS:
            reference = speeds.reference(known[large[0]].settings)
        kinds = {call.kind for name in large for call in asked[name]} | {work.FORWARD}
        kinds -= {work.DECODE, work.FEATURES, work.METRICS}
        speed.measure(reference, [work.Call(kind, size) for kind in kinds for size in speeds.batches(kind)])
        images = [call for name in large for call in asked[name] if call.kind == work.METRICS]
        speed.measure(reference, images)
    return Estimator(speed, known, reference)


# Memory that is held from one call to the next


def _held(job: Job, settings: DatasetSettings, size: Size) -> tuple[float, float]:
    """Bytes of calibration data, of caches and of images: on the device, and in host memory what does not
    fit there and what units gave."""
    if job.rule not in ("calibrate", "reconstruct", "finetune"):
        return _shards(job, settings), 0.0
    chosen = settings.calibration
    held = chosen.samples_per_step * (chosen.steps * size.sample_bytes + size.context_bytes)
    caches, passed, budget = _recorded(job, settings, size)
    spilled = min(passed, budget)
    for cache in caches:
        if cache > budget:
            spilled += cache
        else:
            held, budget = held + cache, budget - cache
    return held, spilled


def _recorded(job: Job, settings: DatasetSettings, size: Size) -> tuple[list[float], float, float]:
    """Bytes of each thing that is recorded to learn from, of the outputs of units that recording goes on from, and of
    the budget of either."""
    if job.rule == "reconstruct":
        of, own = unitwise, settings.reconstruction
    elif job.rule == "finetune":
        name = job.wildcards["method"]
        of, own = methods.of(name), settings.method(name)
    else:
        return [], 0.0, 0.0
    if not isinstance(own, CacheSettings):
        return [], 0.0, 0.0
    passed = of.passed(settings, own, size) if hasattr(of, "passed") else 0.0
    return of.caches(settings, own, size), passed, own.cache_mib * 2**20


def _shards(job: Job, settings: DatasetSettings) -> float:
    """Bytes of the images that are in memory at once, and of their features."""
    if job.rule not in ("sample", "measure"):
        return 0.0
    evaluation = settings.evaluation
    shard = evaluation.images / evaluation.shards * _image(settings)
    if job.rule == "sample":
        return 2 * shard  # batches, then all of them in one piece
    pooled, spatial = _widths(settings)
    return 2 * shard + evaluation.images * pooled * _FLOAT + 4 * (pooled**2 + spatial**2) * _DOUBLE


def _image(settings: DatasetSettings) -> int:
    return settings.image_channels * settings.image_size**2


def _widths(settings: DatasetSettings) -> tuple[int, int]:
    return _INCEPTION_WIDTHS if settings.extractor.suffix == ".pth" else _SMALL_WIDTHS


# Disk


def _disk(job: Job, settings: DatasetSettings | None, size: Size | None) -> float:
    """Bytes of what a job writes."""
    if settings is None or size is None:
        return {"figures": 3 * _PICTURE, "preview": _PICTURE}.get(job.rule, _TEXT * len(job.outputs))
    chosen = settings.calibration
    if job.rule == "import_model":
        return size.all_parameters * _FLOAT
    if job.rule in ("pretrain", "pretrain_denoiser"):
        return size.all_parameters * _FLOAT / 2
    if job.rule == "calibrate":
        return chosen.samples_per_step * (chosen.steps * size.sample_bytes + size.context_bytes)
    if job.rule == "reconstruct":  # a bit a weight, scale and zero point a channel
        return size.weights / 8 + size.scales * 2 * _FLOAT
    if job.rule == "finetune":
        bits = Bits.parse(job.wildcards["bits"]).weight
        return size.weights * bits / 8 + (size.parameters - size.weights + size.scales * 2) * _FLOAT
    if job.rule == "sample":
        return settings.evaluation.images / settings.evaluation.shards * _image(settings)
    if job.rule == "reference":
        pooled, spatial = _widths(settings)
        return min(_KNOWN, settings.reference_images) * pooled * _FLOAT + (pooled**2 + spatial**2) * _DOUBLE
    return _TEXT


def total(costs: Iterable[Cost]) -> Cost:
    """Of several jobs: seconds and disk of all, the largest memory of one."""
    costs = list(costs)
    return Cost(
        sum(cost.seconds for cost in costs),
        sum(cost.computing for cost in costs),
        max((cost.memory for cost in costs), default=0.0),
        max((cost.gpu_memory for cost in costs), default=0.0),
        sum(cost.disk for cost in costs),
        any(cost.reckoned for cost in costs),
    )
