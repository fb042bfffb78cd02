"""What the settings of all methods share.

A method's settings are ``config/methods/<name>.py``: one class, its title in tables beside its fields; the method
itself is ``methods/<name>.py``. Both are found by that name.
"""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple, get_args

from pydantic import Field

from quest.config.values import Positive, Settings

Grouping = Literal["blocks", "temporal"]
GROUPINGS: tuple[Grouping, ...] = get_args(Grouping)
"""How layers are grouped into the units whose rounding is learned together."""

PolicyName = Literal["common", "everything", "paper", "time_full_precision"]
PAPER = "paper"


class Rounding(NamedTuple):
    """Learned rounding, which all cells share that start from the same.

    grouping: of layers into the units that are learned together. policy: which layers have other bits; that of a
    method's paper is "<method>-paper".
    """

    grouping: Grouping
    policy: str


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
    policy: PolicyName = Field(
        default="common",
        description="which layers have the bits of the run: all, of which the first and the last have 8 (common), all "
        "without exception (everything), what the method's paper says (paper), or as common but the time embedding in "
        "full precision",
    )
