"""From YAML or JSON to settings; every fault in one message: the file, the key, what was found, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from quest.config.values import ConfigError, Settings

S = TypeVar("S", bound=Settings)


def validate(cls: type[S], content: Any, source: str) -> S:
    """``content`` as ``cls``; every fault of it in one ConfigError that names ``source`` and each key."""
    try:
        return cls.model_validate(content)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{source}: {_explain(cls, fault)}" for fault in error.errors())) from None


def unknown(name: str, known: Iterable[str]) -> str:
    """The sentence for a name that is not one of ``known``, with the nearest suggestion."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"unknown {name!r}{hint}; known are {', '.join(known)}"


def merged(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``content`` with ``changes`` put in, branch by branch."""
    below = {key: merged(content.get(key) or {}, value) for key, value in changes.items() if isinstance(value, dict)}
    return {**content, **changes, **below}


def read(path: Path) -> Any:
    """A YAML file's content. Raises ConfigError."""
    try:
        return yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}; run from the project's folder or name the file with --config"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None


def _explain(cls: type[Settings], fault: Any) -> str:
    """One human sentence for one of pydantic's faults."""
    keys = fault["loc"]
    key = ".".join(str(part) for part in keys)
    if fault["type"] == "extra_forbidden":
        owner: Any = cls
        for part in keys[:-1]:
            annotation = owner.model_fields[part].annotation
            owner = next(t for t in (annotation, *get_args(annotation)) if hasattr(t, "model_fields"))
        return f"{key}: {unknown(str(keys[-1]), owner.model_fields)}"
    if fault["type"] == "missing":
        return f"{key}: missing; it has no default"
    if fault["type"] == "value_error":
        return f"{key}: {fault['msg']}".removeprefix(": ").replace("Value error, ", "")
    return f"{key}: found {fault['input']!r}; {fault['msg'].removeprefix('Input should be').strip()} is expected"
