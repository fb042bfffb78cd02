"""Nearest rounding: activation scales are searched."""

from __future__ import annotations

from quest.config.dataset import DatasetSettings
from quest.config.methods.nearest import NearestSettings
from quest.estimate import work
from quest.estimate.work import Work


def calls(settings: DatasetSettings, own: NearestSettings, _bits: str) -> Work:
    """The search alone."""
    return work.chosen(settings, own.sets)
