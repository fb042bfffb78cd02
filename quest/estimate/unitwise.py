"""What learning unit by unit costs, of weights (learned rounding) or of activation scales: its calls and its memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quest.config.dataset import DatasetSettings
from quest.config.learning import ReconstructionSettings, ScaleLearningSettings
from quest.estimate import work
from quest.estimate.work import BUILD, CHUNK, FORWARD, QUANTIZED, RANGES, RECORD, RECORD_FULL, ROUNDING, SCALES, Work

if TYPE_CHECKING:
    from quest.estimate.networks import Size

Learning = ReconstructionSettings | ScaleLearningSettings


def samples(settings: DatasetSettings, own: Learning) -> int:
    """That are recorded of every unit."""
    steps = settings.calibration.steps
    return steps * work.recorded(settings, own.samples // steps)


def learned_rounding(settings: DatasetSettings, own: ReconstructionSettings) -> Work:
    """From building the network to the loss of every unit."""
    count = samples(settings, own)
    return (
        work.calls(BUILD, 1, 1)
        + work.calls(RECORD, count, CHUNK)
        + work.calls(ROUNDING, own.batch_size, own.batch_size, own.iterations)
        + work.calls(FORWARD, count, CHUNK, 2)  # the loss of each unit, before and after
    )


def learned_scales(settings: DatasetSettings, own: ScaleLearningSettings, sets: int) -> Work:
    """From the search of scales, one for each of ``sets``, to the loss of every unit."""
    count, steps = samples(settings, own), settings.calibration.steps
    found = work.chosen(settings, sets)
    if own.running_statistics:
        found += work.calls(RANGES, steps * work.recorded(settings) / sets, CHUNK, sets)
    return (
        found
        + work.calls(RECORD_FULL, count, CHUNK)
        + work.calls(SCALES, own.batch_size, own.batch_size, own.iterations)
        + work.calls(QUANTIZED, count, CHUNK, 2)  # the loss of each unit, before and after
    )


def caches(settings: DatasetSettings, own: Learning, size: Size) -> list[float]:
    """Bytes of inputs and targets of the largest unit."""
    return [samples(settings, own) * size.cache_bytes]


def passed(settings: DatasetSettings, own: Learning, size: Size) -> float:
    """Bytes of the outputs of units that recording of all samples would go on from, of weights in both precisions."""
    return samples(settings, own) * size.kept_bytes * (2 if isinstance(own, ReconstructionSettings) else 1)
