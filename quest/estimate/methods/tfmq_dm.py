"""TFMQ-DM: running ranges of every sampling step."""

from __future__ import annotations

from quest.config.dataset import DatasetSettings
from quest.config.methods.tfmq_dm import TFMQDMSettings
from quest.estimate import work
from quest.estimate.work import CHOOSE, RANGES, Work


def calls(settings: DatasetSettings, own: TFMQDMSettings, _bits: str) -> Work:
    """The first batch of a step is searched, all of them are followed."""
    of_set = settings.calibration.steps // own.sets * work.recorded(settings)
    first = work.calls(CHOOSE, min(own.batch_size, of_set), own.batch_size, own.sets)
    return first + work.calls(RANGES, of_set, own.batch_size, own.sets)
