"""docs/config.md is what the typed settings say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from quest.config.dataset import DatasetSettings
from quest.config.reference import _kind, _sections, markdown
from quest.config.run import RunSettings
from quest.config.values import Settings

PAGE = Path(__file__).parents[2] / "docs" / "config.md"


def test_the_page_is_current():
    assert PAGE.read_text() == markdown(), "run `quest config docs`"


def keys(cls: type[Settings], prefix: str = ""):
    """Every key of a settings class with its section."""
    for name, info in cls.model_fields.items():
        nested = [t for t in (info.annotation, *getattr(info.annotation, "__args__", ())) if isinstance(t, type)]
        section = next((t for t in nested if issubclass(t, Settings)), None)
        if section is None:
            yield prefix, name
        else:
            yield from keys(section, f"{prefix}{name}.")


@pytest.mark.parametrize("cls", [RunSettings, DatasetSettings])
def test_every_key_is_in_its_section(cls: type[Settings]):
    sections = dict(part.split("\n", 1) for part in markdown().split("\n## ")[1:])
    for prefix, name in keys(cls):
        top = "config/config.yaml" if cls is RunSettings else "config/datasets/&lt;dataset&gt;.yaml"
        heading = f"`{prefix[:-1]}`" if prefix else top
        assert f"| `{name}` |" in sections[heading], (prefix, name)


class Example(Settings):
    """One key of each sort."""

    count: Annotated[int, Field(gt=0, le=9)] = Field(3, description="how many")
    choice: Literal["a", "b"] | None = None
    pair: tuple[float, float]
    names: tuple[str, ...] = ("x",)
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    table: dict[Literal["4"], bool] = Field(default={"4": True})


def test_values_and_defaults_are_written_for_people():
    (section,) = _sections(Example, "Example", "")
    assert [line for line in section.splitlines() if line.startswith("| `")] == [
        "| `count` | integer > 0, ≤ 9 | `3` | how many |",
        "| `choice` | `a` or `b` or nothing | nothing |  |",
        "| `pair` | list of 2: number, number | required |  |",
        '| `names` | list of text | `["x"]` |  |',
        "| `seeds` | list of integer ≥ 0 (at least 1) | required |  |",
        '| `table` | map from `4` to true or false | `{"4": true}` |  |',
    ]


def test_a_type_without_words_is_an_error():
    class Odd(Settings):
        value: complex

    with pytest.raises(TypeError, match="no description for settings of type"):
        _kind(Odd.model_fields["value"])
