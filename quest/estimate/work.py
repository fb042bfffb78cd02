"""The work of a job as calls of the network, counted from its settings: a stage a function, which reads like the stage.

A call is what is done at once on a batch of samples. Guided models are called on both halves of a batch, so their
batches are twice as large. What a kind of call does, and how long it takes here, is measured in `quest.estimate.speed`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from quest import methods
from quest.config.dataset import DatasetSettings
from quest.config.methods import base_method
from quest.config.methods.efficientdm import EfficientDMSettings
from quest.config.methods.nearest import NearestSettings
from quest.config.methods.ptqd import PtqdSettings
from quest.config.methods.q_diffusion import QDiffusionSettings
from quest.config.methods.quest import QuestSettings
from quest.config.methods.tfmq_dm import TFMQDMSettings
from quest.config.methods.traq import TraqSettings
from quest.config.quantization import QuantizationSettings
from quest.config.values import FULL_PRECISION, Bits, ConfigError
from quest.estimate.plan import Job

FORWARD = "forward"
"""The full-precision network."""
QUANTIZED = "quantized"
"""The fake-quantized network, its weights on their grids already."""
INTEGERS = "integers"
"""The packed network, its integers multiplied by the kernels of this machine."""
BUILD = "build"
"""Every layer on its grid, weight scales searched (batch 1, whatever the batch of others)."""
CHOOSE = "choose"
"""The activation scales of one group of sampling steps, searched on a batch."""
RANGES = "ranges"
"""A running mean of all activation ranges goes on by a batch."""
RECORD = "record"
"""Inputs of every unit in the network with quantized weights, and targets in full precision."""
RECORD_FULL = "record_full"
"""Inputs and targets of every unit in full precision."""
ROUNDING = "rounding"
"""A step of learned rounding on every unit."""
SCALES = "scales"
"""A step of learned activation scales on every unit."""
STAGES = ("tla", "cma", "full")
"""A step of a stage of QuEST: forward and back through the whole network."""
DISTIL = "distil"
"""A step of EfficientDM on a state of the teacher's trajectory, the teacher's own prediction included."""
DECODE = "decode"
"""The first stage, from latents to images."""
FEATURES = "features"
"""The feature extractor of the metrics."""
METRICS = "metrics"
"""All metrics from the features of so many images."""
TRAIN = "train"
"""An optimizer step of an embedded model's training."""


class Call(NamedTuple):
    """kind: one of the words above. batch: samples that go through at once."""

    kind: str
    batch: int


Work = Counter[Call]

_BACKENDS = {"fake": QUANTIZED, "integer": INTEGERS}  # what a step of `sample` is
_CHUNK = 64  # of calibration, recording and the teacher's outputs: the batch that the library takes


def of(job: Job) -> Work:
    """The calls of a job, none where it makes none that count."""
    counted = _STAGES.get(job.rule)
    return Work() if counted is None or job.settings is None else counted(job, job.settings)


def calls(kind: str, samples: float, batch: int, times: float = 1) -> Work:
    """``samples`` in batches, the last one smaller; all of it ``times``."""
    whole, rest = divmod(int(samples), batch)
    found = Work()
    for size, count in ((batch, whole), (rest, 1 if rest else 0)):
        if count:
            found[Call(kind, size)] += count * times  # type: ignore[assignment]  # parts of calls are well defined
    return found


def sampled(kind: str, settings: QuantizationSettings, samples: int, batch: int) -> Work:
    """``samples`` trajectories from noise to sample: a call a step, and one more of PLMS."""
    sampler = settings.sampler
    predictions = sampler.steps + (sampler.kind == "plms")
    return calls(kind, samples * halves(settings), batch * halves(settings), predictions)


def halves(settings: QuantizationSettings) -> int:
    """Predictions of one sample: two where it is guided."""
    return 1 if settings.condition is None or settings.sampler.guidance_scale == 1 else 2


def recorded(settings: QuantizationSettings, wanted: int | None = None) -> int:
    """Calibration samples of a step when ``wanted`` are asked for: at most those that are there, which None takes."""
    there = settings.calibration.samples_per_step * halves(settings)
    return there if wanted is None else max(1, min(wanted, there))


# The stages


def _calibrate(_job: Job, settings: DatasetSettings) -> Work:
    return sampled(FORWARD, settings, settings.calibration.samples_per_step, _CHUNK)


def _reconstruct(_job: Job, settings: DatasetSettings) -> Work:
    own, steps = settings.reconstruction, settings.calibration.steps
    samples = steps * recorded(settings, own.samples // steps)
    return (
        calls(BUILD, 1, 1)
        + calls(RECORD, samples, _CHUNK)
        + calls(ROUNDING, own.batch_size, own.batch_size, own.iterations)
        + calls(FORWARD, samples, _CHUNK, 2)  # the loss of each unit, before and after
    )


def _finetune(job: Job, settings: DatasetSettings) -> Work:
    name = job.wildcards["method"]
    if (counted := _METHODS.get(base_method(name))) is None:
        raise ConfigError(f"methods: {name}: its calls are not counted; say in {__name__} how many it makes")
    return calls(BUILD, 1, 1) + counted(settings, settings.method(name), job.wildcards["bits"])


def _sample(job: Job, settings: DatasetSettings) -> Work:
    evaluation, shard = settings.evaluation, int(job.wildcards["shard"])
    kind = FORWARD if job.wildcards["method"] == FULL_PRECISION else _BACKENDS[evaluation.backend]
    images = evaluation.images * (shard + 1) // evaluation.shards - evaluation.images * shard // evaluation.shards
    return sampled(kind, settings, images, evaluation.batch_size) + calls(DECODE, images, evaluation.batch_size)


def _measure(_job: Job, settings: DatasetSettings) -> Work:
    images = settings.evaluation.images
    return calls(FEATURES, images, _CHUNK) + calls(METRICS, images, images)


def _reference(_job: Job, settings: DatasetSettings) -> Work:
    return calls(FEATURES, settings.reference_images, _CHUNK)


def _pretrain(_job: Job, settings: DatasetSettings) -> Work:
    assert settings.pretrain is not None  # or the rule would not be there
    return calls(TRAIN, settings.pretrain.batch_size, settings.pretrain.batch_size, settings.pretrain.steps)


# What a method does after the network stands on its grids


def _chosen(settings: DatasetSettings, sets: int) -> Work:
    """Activation scales of every group of steps, each on at most 64 of its samples."""
    of_group = settings.calibration.steps // sets * recorded(settings)
    return calls(CHOOSE, min(_CHUNK, of_group), _CHUNK, sets)


def _nearest(settings: DatasetSettings, own: NearestSettings, _bits: str) -> Work:
    return _chosen(settings, own.sets)


def _quest(settings: DatasetSettings, own: QuestSettings, _bits: str) -> Work:
    work = _chosen(settings, own.sets)
    for stage in own.stages:
        which = "tla" if stage == "tla" else "cma"  # full takes the schedule of stage 2
        epochs, each, batch = (getattr(own, f"{which}_{key}") for key in ("epochs", "samples", "batch_size"))
        samples = settings.calibration.steps * recorded(settings, each)
        work += calls(FORWARD, samples, _CHUNK)  # the teacher's outputs
        work += calls(stage, samples / own.sets, batch, max(1, round(own.passes * epochs)) * own.sets)
    return work


def _learned_scales(settings: DatasetSettings, own: QDiffusionSettings | PtqdSettings) -> Work:
    steps = settings.calibration.steps
    samples = steps * recorded(settings, own.samples // steps)
    work = _chosen(settings, own.sets)
    if own.running_statistics:
        work += calls(RANGES, steps * recorded(settings) / own.sets, _CHUNK, own.sets)
    return (
        work
        + calls(RECORD_FULL, samples, _CHUNK)
        + calls(SCALES, own.batch_size, own.batch_size, own.iterations)
        + calls(QUANTIZED, samples, _CHUNK, 2)  # the loss of each unit, before and after
    )


def _ptqd(settings: DatasetSettings, own: PtqdSettings, bits: str) -> Work:
    module = methods.get("ptqd")
    widths = 1 + len(module.lower_bits(own, Bits.parse(bits).activation))
    trajectories = own.trajectories, own.held_out
    work = Work()
    for _ in range(widths):
        work += _learned_scales(settings, own)
        for count in trajectories:  # the noise of the quantized network, beside full precision
            work += sampled(FORWARD, settings, count, _CHUNK) + sampled(QUANTIZED, settings, count, _CHUNK)
    return work


def _efficientdm(settings: DatasetSettings, own: EfficientDMSettings, _bits: str) -> Work:
    of_set = settings.calibration.steps // own.sets * recorded(settings, 16)
    errors = calls(FORWARD, of_set, max(1, of_set), 2 * own.sets) + calls(
        QUANTIZED, of_set, max(1, of_set), 2 * own.sets
    )
    trajectory = sampled(DISTIL, settings, own.batch_size, own.batch_size)
    return (
        _chosen(settings, own.sets)
        + Work({call: count * own.trajectories for call, count in trajectory.items()})
        + errors  # before and after
    )


def _tfmq_dm(settings: DatasetSettings, own: TFMQDMSettings, _bits: str) -> Work:
    of_set = settings.calibration.steps // own.sets * recorded(settings)
    first = calls(CHOOSE, min(own.batch_size, of_set), own.batch_size, own.sets)
    return first + calls(RANGES, of_set, own.batch_size, own.sets)


def _traq(settings: DatasetSettings, own: TraqSettings, _bits: str) -> Work:
    steps = settings.sampler.steps
    influence = sampled(FORWARD, settings, 32, 32)
    followed = Work({call: count * (steps + 1) for call, count in influence.items()})
    drawn = sampled(QUANTIZED, settings, own.trajectories, _CHUNK)
    taught = calls(FORWARD, steps * own.trajectories * halves(settings), _CHUNK)
    return (
        _chosen(settings, own.sets)
        + followed
        + Work({call: count * max(1, own.draws) for call, count in (drawn + taught).items()})
        + calls("full", own.batch_size, own.batch_size, own.passes // own.batch_size)
    )


_METHODS: dict[str, Callable[..., Work]] = {
    "nearest": _nearest,
    "quest": _quest,
    "q-diffusion": lambda settings, own, _bits: _learned_scales(settings, own),
    "ptqd": _ptqd,
    "efficientdm": _efficientdm,
    "tfmq-dm": _tfmq_dm,
    "traq": _traq,
}
_STAGES: dict[str, Callable[[Job, DatasetSettings], Work]] = {
    "calibrate": _calibrate,
    "reconstruct": _reconstruct,
    "finetune": _finetune,
    "sample": _sample,
    "measure": _measure,
    "reference": _reference,
    "pretrain": _pretrain,
    "pretrain_denoiser": _pretrain,
}
