"""What the images of a cell were drawn for, in words: a class or a prompt each, for people to read above a column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quest.config.dataset import load_dataset
from quest.config.sampling import ConditionSettings
from quest.config.values import ConfigError


def words(dataset: str, settings: Mapping[str, Any] | None, indices: Sequence[int]) -> list[str] | None:
    """The class or prompt of the evaluated images ``indices``; None where the model is unconditional.

    settings: the condition in an artifact's manifest. Where a class has no name here, or the prompts' file is gone, its
    number stands for it.
    """
    from quest.diffusion.conditions import EVALUATION, choices, in_turn

    if settings is None:
        return None
    condition = ConditionSettings.model_validate(settings)
    try:
        chosen = in_turn(choices(condition), EVALUATION, 0, indices)
    except ValueError:  # the file of prompts
        return [f"prompt {index}" for index in indices]
    return [_class(dataset, each) if condition.classes else str(each) for each in chosen or ()]


def _class(dataset: str, number: int) -> str:
    """Like "red circle" where the dataset is drawn by a program, else "class 3"."""
    from quest.embedded import shapes

    try:
        drawn = load_dataset(dataset).real_images == "shapes"
    except ConfigError:
        drawn = False
    if not drawn:
        return f"class {number}"
    of_class = shapes.attributes(number * shapes.LABELS // shapes.CLASSES)
    return f"{of_class.colour} {of_class.shape}"
