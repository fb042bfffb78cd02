"""TRAQ: states of its own trajectories with the teacher's predictions on them, and steps of training everything."""

from __future__ import annotations

from quest import methods
from quest.config.dataset import DatasetSettings
from quest.config.methods.traq import TraqSettings
from quest.estimate import work
from quest.estimate.work import CHUNK, FORWARD, FULL, QUANTIZED, Work


def calls(settings: DatasetSettings, own: TraqSettings, _bits: str) -> Work:
    """What an error at each step does to the image is measured first, where anything is trained."""
    found = work.chosen(settings, own.sets)
    if own.passes:
        found += _trained(settings, own)
    return found


def _trained(settings: DatasetSettings, own: TraqSettings) -> Work:
    steps = settings.sampler.steps
    influence = work.sampled(FORWARD, settings, 32, 32)
    drawn = work.sampled(QUANTIZED, settings, own.trajectories, CHUNK)
    taught = work.calls(FORWARD, steps * own.trajectories * work.halves(settings), CHUNK)
    return (
        work.times(influence, steps + 1)
        + work.times(drawn + taught, methods.get("traq").rounds(own))
        + work.calls(FULL, own.batch_size, own.batch_size, own.passes // own.batch_size)
    )
