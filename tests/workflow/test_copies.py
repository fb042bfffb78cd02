"""Copies of tables: found, renewed where the result changed, and nothing else of the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quest.artifacts import Manifest, save_json
from quest.report import paper, published, tables
from workflow import copies

MARK = "<!-- results/tables/digits.md -->\n"
FID, OLD, INCEPTION = "| FID |\n|---|\n| 1.25 |\n", "| FID |\n|---|\n| 1.24 |\n", "| IS |\n|---|\n| 9 |\n"
OTHER = f"\nOwn words.\n\n## Other\n\n{OLD}"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose README has a copy that drifted."""

    def markdown(content: dict[str, Any]) -> str:
        return f"| FID |\n|---|\n| {content['rows'][0]['fid']} |\n\nWords.\n\n{INCEPTION}"

    monkeypatch.setattr(tables, "to_markdown", markdown)
    save_json(tmp_path / "results/tables/digits.json", {"rows": [{"fid": 1.25}], "summary": []}, Manifest("table"))
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(f"# Title\n\n{MARK}{OLD}{OTHER}")
    (tmp_path / "docs/a.md").write_text("<!-- results/tables/missing.md -->\n| a |\n|---|\n| 1 |\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_copy_that_drifted_is_named_and_renewed(root: Path) -> None:
    with pytest.raises(SystemExit, match=r"README\.md: not as in results/"):
        copies.main(check=True)
    assert (root / "README.md").read_text() == f"# Title\n\n{MARK}{OLD}{OTHER}", "a check changes nothing"
    copies.main(check=False)
    copies.main(check=True)
    assert (root / "README.md").read_text() == f"# Title\n\n{MARK}{FID}{OTHER}"


def test_every_table_below_a_mark_is_a_copy(root: Path) -> None:
    (root / "README.md").write_text(f"{MARK}| old |\n\nBetween.\n\n| older |\n{MARK}| old |\n")
    copies.main(check=False)
    assert (root / "README.md").read_text() == f"{MARK}{FID}\nBetween.\n\n{INCEPTION}{MARK}{FID}"


def test_a_table_of_the_papers_is_a_copy_of_what_its_result_says(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "to_markdown", lambda content, known: f"| {known} |\n|---|\n| {content['rows']} |\n")
    monkeypatch.setattr(published, "load", lambda: "published")
    save_json(root / "results/paper/digits/layers.json", {"rows": [3]}, Manifest("paper"))
    (root / "README.md").write_text(f"<!-- results/paper/digits/layers.md -->\n{OLD}")
    copies.main(check=False)
    assert (root / "README.md").read_text() == (
        "<!-- results/paper/digits/layers.md -->\n| published |\n|---|\n| [3] |\n"
    )


def test_points_are_copied_with_their_picture(root: Path) -> None:
    front = root / "results/front/digits"
    front.mkdir(parents=True)
    (front / "front.md").write_text(f"{FID}\nWords.\n\n{INCEPTION}")
    (front / "front.png").write_bytes(b"new")
    page = root / "docs/a.md"
    page.write_text(
        f"<!-- results/front/digits/front.md -->\n{OLD}\nOwn words.\n\n| old |\n"
        "<!-- results/front/digits/front.png -->\n![Quality](images/digits.png)\n"
        "<!-- results/front/shapes/front.png -->\n![Not here](images/shapes.png)\n"
    )
    with pytest.raises(SystemExit, match=r"docs/a\.md, docs/images/digits\.png: not as in results/"):
        copies.main(check=True)
    copies.main(check=False)
    assert page.read_text().startswith(f"<!-- results/front/digits/front.md -->\n{FID}\nOwn words.\n\n{INCEPTION}<!--")
    assert (root / "docs/images/digits.png").read_bytes() == b"new"
    (front / "front.png").write_bytes(b"newer")
    with pytest.raises(SystemExit, match=r"digits\.png"):
        copies.main(check=True)
