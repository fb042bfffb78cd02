"""From YAML or JSON to settings; every fault in one message: the file, the key, what was found, what is allowed."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from quest.config.values import NAME, ConfigError, Settings

S = TypeVar("S", bound=Settings)


def validate(cls: type[S], content: Any, source: str) -> S:
    """``content`` as ``cls``; every fault of it in one ConfigError that names ``source`` and each key.

    Nothing is converted but what YAML and JSON cannot write: lists become tuples and texts paths, "20" no number.
    """
    try:
        # Only as JSON does pydantic tell a list that has to be a tuple from a text that has to be a number.
        return cls.model_validate_json(json.dumps(content, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{source}: {_explain(cls, fault)}" for fault in error.errors())) from None
    except (TypeError, ValueError, RecursionError):
        raise ConfigError(f"{source}: it contains itself, or has a key that is no text; write it out") from None


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
    """A YAML file's content, UTF-8 whatever the locale. Raises ConfigError, also for a key that is given twice."""
    try:
        return yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}; run from the project's folder or name the file with --config"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid YAML: byte {error.start} is no UTF-8; save it as UTF-8 text") from None
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(f"{path}: not valid YAML: {where}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except (RecursionError, ValueError):  # nested too deeply, or a date that is none
        raise ConfigError(f"{path}: not valid YAML: a value in it cannot be read") from None


def named_files(folder: Path, what: str) -> dict[str, Path]:
    """The YAML files of ``folder`` by name, hidden ones left out.

    what: each of them is, for the message. Raises ConfigError for a name that could be more than a name, in a path or
    on a command line.
    """
    files = sorted(path for path in folder.glob("*.yaml") if not path.name.startswith("."))
    for path in files:
        if not re.fullmatch(NAME, path.stem):
            raise ConfigError(f"{str(path)!r}: {what} is named by small letters, digits and dashes; rename the file")
    return {path.stem: path for path in files}


class _Loader(yaml.SafeLoader):
    """Plain values alone; numbers as YAML 1.2 has them, and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else ""
            if name in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{name} is given twice; leave one of the two out", problem_mark=key.start_mark
                )
            if name and key.tag != "tag:yaml.org,2002:merge":
                seen.add(name)
        return super().construct_mapping(node, deep)


# PyYAML, of version 1.1, takes 1e-4 for a text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _explain(cls: type[Settings], fault: Any) -> str:
    """One human sentence for one of pydantic's faults."""
    keys = fault["loc"]
    key = ".".join(str(part) for part in keys)
    if fault["type"] == "extra_forbidden":
        return f"{key}: {unknown(str(keys[-1]), _owner(cls, keys[:-1]).model_fields)}"
    if fault["type"] == "json_invalid":
        return "a text in it is no Unicode; write its characters as they are"
    if fault["type"] == "missing":
        return f"{key}: missing; it has no default"
    if fault["type"] == "value_error":
        return f"{key}: {fault['msg']}".removeprefix(": ").replace("Value error, ", "")
    expected = fault["msg"].removeprefix("Input should be").strip()
    for of_json, of_yaml in (("a valid array", "a valid list"), ("an object", "a valid mapping of keys")):
        expected = expected.replace(of_json, of_yaml)
    return f"{key}: found {_shown(fault['input'])}; {expected} is expected".removeprefix(": ")


def _owner(cls: type[Settings], keys: Iterable[str | int]) -> type[Settings]:
    """The settings at ``keys``, which go through fields, and names and positions of what a field holds many of."""
    owner = cls
    for part in keys:
        field = owner.model_fields.get(str(part))
        owner = owner if field is None else _settings_of(field.annotation)[0]
    return owner


def _settings_of(annotation: Any) -> list[type[Settings]]:
    """The settings that an annotation speaks of, however deep."""
    if hasattr(annotation, "model_fields"):
        return [annotation]
    return [settings for part in get_args(annotation) for settings in _settings_of(part)]


def _shown(value: Any) -> str:
    """A value as it stands in the file; the beginning of a long one."""
    if value is None or isinstance(value, bool):
        return "nothing" if value is None else str(value).lower()
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
