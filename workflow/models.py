"""Embedded models stay as they are when their training settings change: which those are, said in one line each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from quest import artifacts
from quest.config.dataset import DatasetSettings


def not_retrained(datasets: Mapping[str, DatasetSettings], root: Path) -> Iterator[str]:
    """A sentence for each model that is there and was trained otherwise than its dataset says now."""
    for dataset, settings in datasets.items():
        if settings.pretrain is None or (trained := _training(root / settings.model)) is None:
            continue
        asked = artifacts.plain(settings.pretrain)
        changed = [key for key in _keys(asked) if _at(trained, key) not in (_at(asked, key), _MISSING)]
        if changed:
            yield (
                f"pretrain.{', pretrain.'.join(changed)} of {dataset} changed, but {settings.model} is there and stays "
                f"as it was trained; `snakemake --forcerun pretrain -- {settings.model}` trains it again"
            )


_MISSING = object()  # a key that the model was trained before


def _training(model: Path) -> dict[str, Any] | None:
    """The settings in a model's manifest, from the header alone; None where there is no readable model."""
    try:
        with model.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return json.loads(header["__metadata__"]["quest"])["settings"]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError):
        return None


def _keys(settings: Any, prefix: str = "") -> Iterator[str]:
    """Every key with a value of its own, dotted."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _at(settings: Any, key: str) -> Any:
    for name in key.split("."):
        if not isinstance(settings, dict) or name not in settings:
            return _MISSING
        settings = settings[name]
    return settings
