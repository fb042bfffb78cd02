"""Nearest rounding: its settings."""

from __future__ import annotations

from quest.config.method import MethodSettings


class NearestSettings(MethodSettings):
    """Nearest rounding and calibrated activation ranges; nothing is trained. The floor of every table."""

    title = "Nearest"
