"""The page ``docs/config.md``, written from the typed settings: every key, what it may be, its default and meaning."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from quest.config.dataset import DatasetSettings
from quest.config.own import OwnSettings
from quest.config.run import RunSettings
from quest.config.values import Settings

_INTRODUCTION = """# Configuration

Written by `quest config docs` from `quest/config/`; do not edit.

`config/config.yaml` holds the axes of a run, `config/datasets/<dataset>.yaml` the protocol of one dataset. A key that
is left out has its default; an unknown key or a wrong value is an error that names it. `quest config check` validates
a run and lists its cells.

`config/variants.yaml` maps `<method>+<what is changed>` to what such a cell changes, keys as in the protocol:
`quest+no-global-loss: {methods: {quest: {global_loss: false}}}`; sections `methods.<method>` and `quantizer` (but not
`weight_search` and `split_shortcuts`, which the shared learned rounding depends on). `config/published.yaml` holds the
tables of the papers.
"""
_NAMES = {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path"}


def markdown() -> str:
    """The whole page."""
    sections = [
        *_sections(RunSettings, "config/config.yaml", ""),
        *_sections(DatasetSettings, "config/datasets/&lt;dataset&gt;.yaml", ""),
        _changes(OwnSettings, "quest quantize"),
    ]
    return "\n".join([_INTRODUCTION, *sections])


def _sections(cls: type[Settings], heading: str, prefix: str) -> Iterator[str]:
    """The section of ``cls``, then of each settings class nested in it; keys of those carry ``prefix``."""
    lines = [f"## {heading}", "", (cls.__doc__ or "").strip(), ""]
    nested: list[tuple[str, type[Settings]]] = []
    rows = []
    for key, info in cls.model_fields.items():
        section = _section(info.annotation)
        if section is not None:
            nested.append((key, section))
        else:
            rows.append(f"| `{key}` | {_kind(info)} | {_default(info)} | {info.description or ''} |")
    if rows:
        lines += ["| key | value | default | meaning |", "|---|---|---|---|", *rows, ""]
    if nested:
        links = ", ".join(f"[`{prefix}{key}`](#{_anchor(prefix + key)})" for key, _ in nested)
        lines += [f"Sections: {links}.", ""]
    if not rows and not nested:
        lines += ["It has no keys.", ""]
    yield "\n".join(lines)
    for key, section in nested:
        yield from _sections(section, f"`{prefix}{key}`", f"{prefix}{key}.")


def _changes(cls: type[Settings], heading: str) -> str:
    """The section of ``cls``; of the settings nested in it, which are described above, what is changed of them."""
    lines = [f"## {heading}", "", (cls.__doc__ or "").strip(), ""]
    lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, info in cls.model_fields.items():
        if _section(info.annotation) is None:
            lines.append(f"| `{key}` | {_kind(info)} | {_default(info)} | {info.description or ''} |")
        else:
            changed = json.dumps(info.default.model_dump(mode="json", exclude_unset=True))
            lines.append(f"| `{key}` | section | as [`{key}`](#{_anchor(key)}), but for `{changed}` | |")
    return "\n".join([*lines, ""])


def _section(annotation: Any) -> type[Settings] | None:
    """The settings class that a key holds, if it is a section (possibly an optional one)."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Settings):
            return candidate
    return None


def _anchor(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return heading.lower().replace(".", "")


def _kind(info: FieldInfo) -> str:
    """What a key may be, for people: "integer > 0", "`max` or `mse`", "list of text"."""
    return _described(info.annotation) + _bounds(info.metadata)


def _described(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _NAMES:
        return _NAMES[annotation]
    if origin is Annotated:
        inner, *metadata = arguments
        # A bound that is declared inside another annotation arrives wrapped in a FieldInfo.
        found = [bound for item in metadata for bound in (item.metadata if isinstance(item, FieldInfo) else [item])]
        return _described(inner) + _bounds(found)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join("nothing" if part is type(None) else _described(part) for part in arguments)
    if origin is list or (origin is tuple and arguments[-1] is Ellipsis):
        return f"list of {_described(arguments[0])}"
    if origin is tuple:
        return f"list of {len(arguments)}: {', '.join(_described(part) for part in arguments)}"
    if origin is dict:
        return f"map from {_described(arguments[0])} to {_described(arguments[1])}"
    raise TypeError(f"no description for settings of type {annotation!r}; add one to quest.config.reference")


def _bounds(metadata: list[Any]) -> str:
    """ " ≥ 0, < 1" for the bounds that pydantic checks."""
    parts = []
    for item in metadata:
        match item:
            case annotated_types.Gt():
                parts.append(f"> {item.gt}")
            case annotated_types.Ge():
                parts.append(f"≥ {item.ge}")
            case annotated_types.Lt():
                parts.append(f"< {item.lt}")
            case annotated_types.Le():
                parts.append(f"≤ {item.le:,}")
            case annotated_types.MinLen():
                parts.append(f"(at least {item.min_length})")
    return " " + ", ".join(parts) if parts else ""


def _default(info: FieldInfo) -> str:
    if info.default is PydanticUndefined:
        return "required"
    if info.default is None:
        return "nothing"
    return f"`{json.dumps(info.default, default=str)}`"
