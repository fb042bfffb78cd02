"""The lines of the README and of the how-to page run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from quest.cli import main
from quest.config.own import own_settings
from quest.config.reading import merged
from quest.own import conversion
from tests.own import brought

ROOT = Path(__file__).parents[2]


@pytest.fixture
def theirs(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the examples speak of; the defaults are few of everything, so that it takes seconds."""
    few = merged(brought.FEW, {"steps": 2})
    monkeypatch.setattr(conversion, "own_settings", lambda changes, source: own_settings(merged(few, changes), source))
    brought.pixels().save_pretrained("theirs")
    return here


def test_the_command_then_the_folder(theirs: Path) -> None:
    """One command, as both pages have it; then what the how-to page loads and draws."""
    page = (ROOT / "docs/howto/own-model.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^    (quest quantize theirs .*)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    assert f"```\n{line}\n```" in page
    done = CliRunner().invoke(main, shlex.split(line)[1:])
    assert done.exit_code == 0, done.output
    assert "PSNR" in done.stdout
    for file in ("card.html", "README.md", "samples.png", "report.json", "model_index.json"):
        assert (theirs / "ours" / file).stat().st_size, file
    drawing, _ = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    found: dict[str, list[object]] = {}
    exec(drawing, found)
    assert len(found["images"]) == 1


def test_the_lines_of_python(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs/howto/own-model.md").read_text(encoding="utf-8")
    _, converting = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    lines = [line for line in converting.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(lines) <= 5
    exec(converting, {})
    assert 3 < float(capsys.readouterr().out) < 60
