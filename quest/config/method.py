"""What the settings of all methods share.

A method's settings are ``config/methods/<name>.py``: one class, its title in tables beside its fields; the method
itself is ``methods/<name>.py``. Both are found by that name.
"""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

from pydantic import Field

from quest.config.values import Positive, Settings

Grouping = Literal["blocks", "temporal"]
GROUPINGS: tuple[Grouping, ...] = get_args(Grouping)
"""How layers are grouped into the units whose rounding is learned together."""


class MethodSettings(Settings):
    """What the methods share.

    title: the method's name in tables. grouping: of the learned rounding that a method starts from, if it does; one
    with a field ``rounding`` does where that says "learned".
    """

    title: ClassVar[str]
    grouping: ClassVar[Grouping | None] = None

    sets: Positive = Field(
        default=20,
        description="groups of sampling steps with activation scales of their own (T' of QuEST); divides sampler.steps",
    )
    policy: Literal["common", "paper", "time_full_precision"] = Field(
        default="common",
        description="which layers are quantized: everything, what the method's paper quantizes, or everything but the "
        "time embedding",
    )
