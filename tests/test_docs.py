"""The pages that a site is made of: none is missing, and lists and tables are read as GitHub reads them."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from quest.config.dataset import load_dataset
from quest.config.methods import METHODS
from quest.studies import STUDIES

DOCS = Path(__file__).parents[1] / "docs"
hook = runpy.run_path(str(DOCS / "hooks.py"))["on_page_markdown"]


def test_every_method_has_a_page() -> None:
    assert {file.stem for file in (DOCS / "methods").glob("*.md")} == {*METHODS, "index"}


def test_every_embedded_model_is_in_the_table_of_them() -> None:
    datasets = {file.stem: load_dataset(file.stem) for file in (DOCS.parent / "config/datasets").glob("*.yaml")}
    embedded = {settings.model.parent.name for settings in datasets.values() if settings.pretrain is not None}
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rows = re.search(r"## Embedded models\n.*?\n((?:\|[^\n]*\n)+)", page, flags=re.DOTALL)
    assert rows is not None
    assert {row.split()[1] for row in rows[1].splitlines()[2:]} == embedded
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert [name for name in embedded if not re.search(rf"\b{name}\b(?!-)", readme)] == []


def visible_words(markdown: str) -> list[str]:
    """What a reader of the page sees, those and the numbers of its tables included: no targets of links, no comments,
    no marks of Markdown."""
    text = re.sub(r"<!--.*?-->", "", markdown, flags=re.DOTALL)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    return re.findall(r"\w[\w.,'-]*", text)


@pytest.mark.parametrize("file", [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda file: file.stem)
def test_tables_keep_a_number_and_its_spread_in_one_line(file: Path) -> None:
    rows = [row for row in file.read_text(encoding="utf-8").splitlines() if row.startswith("|")]
    assert [row for row in rows if re.search(r"\d ± \d", row)] == [], "no-break spaces, please"


def test_the_first_tables_have_eight_columns_at_most() -> None:
    for file in (DOCS.parent / "README.md", DOCS / "results.md", *sorted((DOCS / "results").glob("*.md"))):
        first = re.search(r"^\|.*", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert first is not None
        assert first[0].strip("|").count("|") < 8, file


def test_the_results_are_one_page() -> None:
    """At most 800 visible words; what is longer has a page of its own."""
    assert len(visible_words((DOCS / "results.md").read_text(encoding="utf-8"))) <= 800


def test_words_are_counted_as_they_are_seen() -> None:
    table = "| *method* | dB |\n|---|---:|\n| [a link](to/somewhere.md#else) | **18.1** |\n"
    assert visible_words(f"{table}<!-- results/a.md -->\n- W4A4, low-bit") == [
        "method",
        "dB",
        "a",
        "link",
        "18.1",
        "W4A4,",
        "low-bit",
    ]


def test_every_study_is_among_the_pictures() -> None:
    page = (DOCS / "figures.md").read_text(encoding="utf-8")
    shown = [name for name, study in STUDIES.items() if not study.by_name]
    assert [name for name in shown if f"{name}.png" not in page] == []


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("text\n- one\n- two", "text\n\n- one\n- two"),
        ("text\n1. one", "text\n\n1. one"),
        ("text\n| a |\n|---|\n| 1 |", "text\n\n| a |\n|---|\n| 1 |"),
        ("- one\n  goes on\n- two", "- one\n  goes on\n- two"),
        ("- one\n\n  | a |\n  |---|", "- one\n\n  | a |\n  |---|"),
        ("```\ntext\n- no list\n```\ntext\n- a list", "```\ntext\n- no list\n```\ntext\n\n- a list"),
        ("*text* - no list", "*text* - no list"),
    ],
)
def test_lists_and_tables_may_follow_a_line_of_text(written: str, read: str) -> None:
    assert hook(written) == read
