"""The work of a job as calls of the network, counted from its settings: a stage a function, which reads like the stage.
What a method does is said by its own file (`quest.estimate.methods`).

A call is what is done at once on a batch of samples. Guided models are called on both halves of a batch, so their
batches are twice as large. What a kind of call does, and how long it takes here, is measured in `quest.estimate.speed`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from quest.config.dataset import DatasetSettings
from quest.config.quantization import QuantizationSettings
from quest.config.values import FULL_PRECISION
from quest.estimate import methods
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
FULL = "full"
"""A step that trains every layer and every activation scale."""
DECODE = "decode"
"""The first stage, from latents to images."""
FEATURES = "features"
"""The feature extractor of the metrics."""
METRICS = "metrics"
"""All metrics from the features of so many images."""
TRAIN = "train"
"""An optimizer step of an embedded model's training."""


class Call(NamedTuple):
    """kind: one of the words above, or of a method's own (`quest.estimate.methods`). batch: samples that go through at
    once."""

    kind: str
    batch: int


Work = Counter[Call]

_BACKENDS = {"fake": QUANTIZED, "integer": INTEGERS}  # what a step of `sample` is
CHUNK = 64
"""Of calibration, recording and the teacher's outputs: the batch that the library takes."""


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


def times(work: Work, count: float) -> Work:
    """All of it, so often."""
    return Work({call: each * count for call, each in work.items()})  # type: ignore[misc]  # as above


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


def chosen(settings: DatasetSettings, sets: int) -> Work:
    """Activation scales of every group of steps, each on at most 64 of its samples."""
    of_group = settings.calibration.steps // sets * recorded(settings)
    return calls(CHOOSE, min(CHUNK, of_group), CHUNK, sets)


# The stages


def _calibrate(_job: Job, settings: DatasetSettings) -> Work:
    return sampled(FORWARD, settings, settings.calibration.samples_per_step, CHUNK)


def _reconstruct(_job: Job, settings: DatasetSettings) -> Work:
    from quest.estimate import unitwise  # which counts in the words of this module

    return unitwise.learned_rounding(settings, settings.reconstruction)


def _finetune(job: Job, settings: DatasetSettings) -> Work:
    name, bits = job.wildcards["method"], job.wildcards["bits"]
    return calls(BUILD, 1, 1) + methods.of(name).calls(settings, settings.method(name), bits)


def _sample(job: Job, settings: DatasetSettings) -> Work:
    evaluation, shard = settings.evaluation, int(job.wildcards["shard"])
    kind = FORWARD if job.wildcards["method"] == FULL_PRECISION else _BACKENDS[evaluation.backend]
    images = evaluation.images * (shard + 1) // evaluation.shards - evaluation.images * shard // evaluation.shards
    return sampled(kind, settings, images, evaluation.batch_size) + calls(DECODE, images, evaluation.batch_size)


def _measure(_job: Job, settings: DatasetSettings) -> Work:
    images = settings.evaluation.images
    return calls(FEATURES, images, CHUNK) + calls(METRICS, images, images)


def _reference(_job: Job, settings: DatasetSettings) -> Work:
    return calls(FEATURES, settings.reference_images, CHUNK)


def _pretrain(_job: Job, settings: DatasetSettings) -> Work:
    assert settings.pretrain is not None  # or the rule would not be there
    return calls(TRAIN, settings.pretrain.batch_size, settings.pretrain.batch_size, settings.pretrain.steps)


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
