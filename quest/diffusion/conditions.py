"""What each sample of a run is drawn for: its class or its prompt, the same whatever the batches and shards."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from quest.config.sampling import ConditionSettings

EVALUATION = "evaluation"


def conditions(settings: ConditionSettings | None, purpose: str, seed: int, indices: Sequence[int]) -> list[Any] | None:
    """Conditions of the samples ``indices``, `in_turn` from the `choices` of a protocol; None if unconditional."""
    return in_turn(choices(settings), purpose, seed, indices)


def choices(settings: ConditionSettings | None) -> Sequence[Any] | None:
    """The classes or prompts of a protocol, or None. Raises ValueError for a prompt file that cannot be used."""
    if settings is None:
        return None
    return range(settings.classes) if settings.classes else read_prompts(_path(settings))


def in_turn(choices: Sequence[Any] | None, purpose: str, seed: int, indices: Sequence[int]) -> list[Any] | None:
    """The conditions of the samples ``indices`` among ``choices``, or None where there are none to choose from.

    Images to be evaluated take classes or prompts in turn, so that all come equally often. Every other purpose takes
    them in turn from an order of its own, so that a few samples are spread over all of them.
    """
    if choices is None:
        return None
    order = list(range(len(choices)))
    if purpose != EVALUATION:
        stream = hashlib.sha256(f"conditions/{purpose}/{seed}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(stream[:4], "little"))
        order = torch.randperm(len(choices), generator=generator).tolist()
    return [choices[order[index % len(order)]] for index in indices]


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file in UTF-8, one a line. Raises ValueError when it is missing or a line is empty."""
    try:
        prompts = prompt_lines(path.read_bytes())
    except OSError as error:
        raise ValueError(
            f"condition.prompts: {path}: {error.strerror}; expected a text file with one prompt a line"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"condition.prompts: {path}: byte {error.start} is not UTF-8; expected a text file with one prompt a line"
        ) from error
    empty = [number for number, prompt in enumerate(prompts, 1) if not prompt.strip()]
    if empty:
        found = f"line {empty[0]} is empty" if prompts != [""] else "no line"
        raise ValueError(f"condition.prompts: {path}: {found}; expected one prompt a line")
    return prompts


def prompt_lines(content: bytes) -> list[str]:
    """The lines of a file of prompts, at least one. Raises UnicodeDecodeError where it is not UTF-8.

    Only a line feed ends a line, with or without a carriage return before it: a prompt may hold whatever else Unicode
    has to separate lines. A byte order mark is no part of the first.
    """
    return content.decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n").split("\n")


def _path(settings: ConditionSettings) -> Path:
    assert settings.prompts is not None  # the settings have one of both
    return settings.prompts
