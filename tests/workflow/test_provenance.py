"""code_hash: what edits of the library change it."""

from __future__ import annotations

import importlib.util
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("provenance", ROOT / "workflow" / "provenance.py")
assert SPEC is not None
assert SPEC.loader is not None
provenance = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(provenance)

STAGE = '''
    """Doc."""
    from quest.grid import scale


    def run(x):
        """Doc of run."""
        from quest import late
        text = """
    # no comment

        """
        return late.f(scale(x)), text  # why
'''


@pytest.fixture
def library(tmp_path: Path) -> Path:
    write(tmp_path, "quest/__init__.py", "")
    write(tmp_path, "quest/stage.py", STAGE)
    write(tmp_path, "quest/grid.py", "import quest.deep.core\n\n\ndef scale(x):\n    return x\n")
    write(tmp_path, "quest/late.py", "from quest.config import Settings\n\n\ndef f(x):\n    return x\n")
    write(tmp_path, "quest/deep/__init__.py", "from . import side\n")
    write(tmp_path, "quest/deep/core.py", "A = 1\n")
    write(tmp_path, "quest/deep/side.py", "B = 1\n")
    write(tmp_path, "quest/config.py", "from quest import unrelated\n")
    write(tmp_path, "quest/unrelated.py", "C = 1\n")
    return tmp_path


def write(root: Path, name: str, source: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(textwrap.dedent(source))


def replace(root: Path, name: str, old: str, new: str) -> None:
    source = (root / name).read_text()
    assert old in source
    (root / name).write_text(source.replace(old, new))


def test_closure_follows_imports_of_every_form_and_leaves_out_the_configuration(library: Path) -> None:
    assert set(provenance.closure(library, "quest.stage")) == {
        *("quest", "quest.stage", "quest.grid", "quest.late"),
        *("quest.deep", "quest.deep.core", "quest.deep.side"),
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""Doc."""', '"""Another\n\nlonger one."""\n# and a comment\n'),
        ('"""Doc of run."""', '"""Doc of run,\n    in two lines."""'),
        ('    """Doc of run."""\n', ""),
        ("  # why", "  # why not"),
        ("  # why", ""),
        ("def run", "# comment\ndef run"),
        ("\n\n\ndef run", "\ndef run"),
    ],
)
def test_comments_docstrings_and_blank_lines_do_not_count(library: Path, old: str, new: str) -> None:
    before = provenance.code_hash(library, "quest.stage")
    replace(library, "quest/stage.py", old, new)
    assert provenance.code_hash(library, "quest.stage") == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("stage.py", "return late.f(scale(x))", "return scale(late.f(x))"),
        ("stage.py", "# no comment", "# no comment, but text"),
        ("stage.py", "# no comment\n\n", "# no comment\n"),
        ("grid.py", "return x", "return -x"),
        ("late.py", "return x", "return -x"),
        ("deep/core.py", "1", "2"),
        ("deep/side.py", "1", "2"),
        ("__init__.py", "", "VERSION = 1\n"),
    ],
)
def test_code_counts_wherever_it_is_reached(library: Path, file: str, old: str, new: str) -> None:
    before = provenance.code_hash(library, "quest.stage")
    replace(library, f"quest/{file}", old, new)
    assert provenance.code_hash(library, "quest.stage") != before


def test_code_that_is_not_reached_does_not_count(library: Path) -> None:
    before = provenance.code_hash(library, "quest.stage")
    write(library, "quest/unrelated.py", "C = 2\n")
    write(library, "quest/config.py", "D = 2\n")
    assert provenance.code_hash(library, "quest.stage") == before


def test_a_docstring_on_the_line_of_its_function(library: Path) -> None:
    assert provenance.code_only('def f(): "doc"; return 1\n') == "def f():; return 1"


def test_a_module_that_is_not_there_is_an_error(library: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"quest\.stages: no such module in .*quest, though a rule names it"):
        provenance.code_hash(library, "quest.stages")
