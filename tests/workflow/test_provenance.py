"""code_hash: what edits of the library change it."""

from __future__ import annotations

import ast
import inspect
import json
import os
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from quest import stages
from quest.config.dataset import DatasetSettings
from workflow import provenance

ROOT = Path(__file__).parents[2]

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


CONFIG = '''
    class Base:
        model_config = {}

    class Settings(Base):
        """Doc."""

        title = "a title"
        sets: int = 3

        def granularity(self):
            return "per_tensor"

    class Empty(Base):
        x: int
'''


@pytest.fixture
def library(tmp_path: Path) -> Path:
    write(tmp_path, "quest/__init__.py", "")
    write(tmp_path, "quest/stage.py", STAGE)
    write(tmp_path, "quest/grid.py", "import quest.deep.core\n\n\ndef scale(x):\n    return x\n")
    write(tmp_path, "quest/late.py", "from quest.config.values import Settings\n\n\ndef f(x):\n    return x\n")
    write(tmp_path, "quest/deep/__init__.py", "from . import side\n")
    write(tmp_path, "quest/deep/core.py", "A = 1\n")
    write(tmp_path, "quest/deep/side.py", "B = 1\n")
    write(tmp_path, "quest/config/__init__.py", "")
    write(tmp_path, "quest/config/values.py", CONFIG)
    write(tmp_path, "quest/unrelated.py", "C = 1\n")
    return tmp_path


def write(root: Path, name: str, source: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(textwrap.dedent(source))


def replace(root: Path, name: str, old: str, new: str) -> None:
    source = (root / name).read_text()
    assert old in source
    (root / name).write_text(source.replace(old, new))


def test_closure_follows_imports_of_every_form(library: Path) -> None:
    assert set(provenance.closure(library, "quest.stage")) == {
        *("quest.stage", "quest.grid", "quest.late"),
        *("quest.deep", "quest.deep.core", "quest.deep.side", "quest.config", "quest.config.values"),
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
        ("config/values.py", "per_tensor", "per_channel"),
        ("config/values.py", "a title", "another"),
    ],
)
def test_code_counts_wherever_it_is_reached(library: Path, file: str, old: str, new: str) -> None:
    before = provenance.code_hash(library, "quest.stage")
    replace(library, f"quest/{file}", old, new)
    assert provenance.code_hash(library, "quest.stage") != before


def test_code_that_is_not_reached_does_not_count(library: Path) -> None:
    before = provenance.code_hash(library, "quest.stage")
    write(library, "quest/unrelated.py", "C = 2\n")
    write(library, "quest/__init__.py", "from quest.unrelated import C\n")  # the face, which no stage goes through
    assert provenance.code_hash(library, "quest.stage") == before


@pytest.mark.parametrize(
    ("old", "new"), [("= 3", "= 4"), ("    sets: int = 3\n", ""), ("x: int", "y: float = 2"), ("Doc", "Another")]
)
def test_keys_of_the_configuration_count_by_their_values_alone(library: Path, old: str, new: str) -> None:
    before = provenance.code_hash(library, "quest.stage")
    replace(library, "quest/config/values.py", old, new)
    assert provenance.code_hash(library, "quest.stage") == before


def test_a_docstring_on_the_line_of_its_function(library: Path) -> None:
    assert provenance.code_only('def f(): "doc"; return 1\n') == "def f():; return 1"


def test_a_module_that_is_not_there_is_an_error(library: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"quest\.stages: no such module in .*quest, though a rule names it"):
        provenance.code_hash(library, "quest.stages")


def test_what_a_stage_depends_on_is_read_without_importing_it(library: Path) -> None:
    write(library, "quest/stages/calibrate.py", 'import torch\n\nSECTIONS = ("sampler", "condition")\n')
    assert provenance.sections_of(library, "calibrate") == ("sampler", "condition")
    write(library, "quest/stages/score.py", "")
    with pytest.raises(ValueError, match=r"score\.py: no SECTIONS, though its rule passes settings"):
        provenance.sections_of(library, "score")


def test_every_function_that_a_stage_runs_counts(
    model_file: Path, calibration_file: Path, settings: DatasetSettings, tmp_path: Path
) -> None:
    """Stages run for real on the tiny model; an edit of any function that they reach changes their hash."""
    whole = settings.model_dump(mode="json")

    def chosen(stage: str, method: str = "") -> list[str]:
        """Arguments with the settings that the rule of a stage passes."""
        sections = {section.split(".")[0] for section in provenance.sections_of(ROOT, stage)}
        given = {
            name: whole[name] for name in ("title", "model", "extractor", "image_size", "image_channels", *sections)
        }
        given |= {"methods": {method: whole["methods"][method]}} if method else {}
        return ["tiny", "--settings", json.dumps(given), "--model", str(model_file), "--device", "cpu"]

    learned = ["--calibration", str(calibration_file), "--reconstruction", str(tmp_path / "blocks.safetensors")]
    checkpoint, nearest = (str(tmp_path / f"{name}.safetensors") for name in ("quest", "nearest"))
    runs = {
        ("calibrate",): [*chosen("calibrate"), "--output", str(tmp_path / "calibration.safetensors")],
        ("reconstruct",): [*chosen("reconstruct"), *learned[:2], "--weight-bits", "4", "--output", learned[3]],
        ("finetune", "quest.methods.quest"): [
            *(*chosen("finetune", "quest"), *learned, "--method", "quest", "--bits", "w4a4", "--output", checkpoint)
        ],
        ("finetune", "quest.methods.efficientdm"): [
            *(*chosen("finetune", "efficientdm"), *learned[:2], "--method", "efficientdm", "--bits", "w4a4"),
            *("--output", str(tmp_path / "efficientdm.safetensors")),
        ],
        ("finetune", "quest.methods.nearest"): [
            *(*chosen("finetune", "nearest"), *learned[:2], "--method", "nearest", "--bits", "w8a8"),
            *("--output", nearest),
        ],
        ("sample", "quest.deploy.backends.integer"): [
            *(*chosen("sample"), "--checkpoint", nearest, "--backend", "integer"),
            *("--output", str(tmp_path / "integers.safetensors")),
        ],
        ("sample", "quest.deploy.backends.fake"): [
            *(*chosen("sample"), "--checkpoint", checkpoint, "--output", str(tmp_path / "samples.safetensors"))
        ],
        ("preview",): [str(tmp_path / "samples.safetensors"), "--output", str(tmp_path / "preview.safetensors")],
    }
    for (stage, *more), arguments in runs.items():
        reached = functions_of_a_call(partial(stages.command(stage).main, arguments, standalone_mode=False))
        counted = {file.resolve(): name for name, file in closure_of(stage, *more).items()}
        assert len(reached) > 5
        for file, line in reached:
            assert file in counted, f"{stage} runs {file}:{line}, which its hash leaves out"
            source = file.read_text()
            declarations = not counted[file].startswith(provenance.CONFIG)
            plain, edited = (
                provenance.code_only(text, declarations) for text in (unparsed(source), changed(source, line))
            )
            assert plain != edited, f"{file}:{line}"


def closure_of(stage: str, *more: str) -> dict[str, Path]:
    return provenance.closure(ROOT, f"quest.stages.{stage}", *more)


def functions_of_a_call(call: Callable[[], object]) -> set[tuple[Path, int]]:
    """File and first line of every function of the library that is entered."""
    found: set[tuple[Path, int]] = set()
    library = str(ROOT / "quest") + os.sep
    hook = str(
        ROOT / "quest/deploy/registration.py"
    )  # entered by imports of any module, once `import quest` put it there

    def note(frame: Any, event: str, _argument: object) -> None:
        code = frame.f_code
        function = code.co_flags & inspect.CO_OPTIMIZED and not code.co_name.startswith("<")  # no class body, no lambda
        if event == "call" and function and code.co_filename.startswith(library) and code.co_filename != hook:
            found.add((Path(code.co_filename), code.co_firstlineno))

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


def unparsed(source: str) -> str:
    return ast.unparse(ast.parse(source))


def changed(source: str, line: int) -> str:
    """``source`` with one more statement in the function that begins at ``line``, decorators included."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and min([node.lineno, *(d.lineno for d in node.decorator_list)]) == line:
            node.body.append(ast.parse("_changed = 1").body[0])
            return ast.unparse(tree)
    raise AssertionError(f"no function begins at line {line}")
