"""The command line is made of the stages, and starts without loading what a command does not need."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from quest import stages
from quest.cli import main

STAGES = {file.stem: file for file in sorted(Path(stages.__path__[0]).glob("[!_]*.py"))}


def command_of(name: str) -> click.Command:
    found = main.get_command(click.Context(main), name)
    assert found is not None
    return found


def listed() -> dict[str, str]:
    """Help of each command by name, as `quest --help` prints it; of a stage where another shares its name."""
    result = CliRunner().invoke(main, ["--help"], terminal_width=500, max_content_width=500)
    assert result.exit_code == 0
    rows = [line.split(maxsplit=1) for line in result.output.splitlines() if line.startswith("  ")]
    return {row[0]: row[1] for row in reversed(rows) if len(row) == 2}  # stages come first


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_is_a_command_that_calls_it_with_what_it_takes(name: str) -> None:
    command = command_of(name.replace("_", "-"))
    taken = inspect.signature(importlib.import_module(f"quest.stages.{name}").run).parameters
    named = {each for each, parameter in taken.items() if parameter.kind is not parameter.VAR_KEYWORD}
    given = {parameter.name for parameter in command.params}
    assert named <= given | {"settings"}
    assert given <= named or len(named) < len(taken), "only one with **given takes more than it names"


def test_help_says_what_the_first_line_of_each_stage_says() -> None:
    lines = listed()
    for name, file in STAGES.items():
        first = (ast.get_docstring(ast.parse(file.read_text())) or "").splitlines()[0]
        assert lines[name.replace("_", "-")] == first


def test_every_command_that_is_listed_is_there() -> None:
    names = main.list_commands(click.Context(main))
    assert set(names) >= {name.replace("_", "-") for name in STAGES} | {"compare", "ui", "config", "bench", "testkit"}
    assert set(names) <= set(listed())
    for name in names:
        assert command_of(name).name == name


def test_an_unknown_command_is_an_error() -> None:
    result = CliRunner().invoke(main, ["calibrat"])
    assert result.exit_code == 2
    assert "No such command 'calibrat'" in result.output


@pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"], ["table", "--help"], ["track", "--help"]])
def test_help_tables_and_tracking_start_without_torch(arguments: list[str]) -> None:
    code = f"""
import sys
from quest.cli import main
try:
    main({arguments!r})
except SystemExit as stop:
    assert stop.code == 0, stop.code
heavy = {{"torch", "diffusers", "transformers", "mlflow"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_error_of_the_user_is_one_message(tmp_path: Path) -> None:
    arguments = ["score", str(tmp_path / "none.json"), "--output", str(tmp_path / "score.json")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert "none.json" in result.output
    assert isinstance(CliRunner().invoke(main, ["--debug", *arguments]).exception, ValueError)


def test_memory_that_is_full_where_no_setting_helps_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(**_given: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")

    monkeypatch.setattr("quest.stages.calibrate.run", run)
    arguments = ["calibrate", "digits", "--model", "m", "--output", "o", "--device", "cpu"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "Error: CUDA out of memory, where the size of a batch is no setting; free the device" in result.output
    assert isinstance(CliRunner().invoke(main, ["--debug", *arguments]).exception, torch.OutOfMemoryError)


def test_another_fault_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(**_given: object) -> None:
        raise RuntimeError("a fault of the library")

    monkeypatch.setattr("quest.stages.calibrate.run", run)
    result = CliRunner().invoke(main, ["calibrate", "digits", "--model", "m", "--output", "o", "--device", "cpu"])
    assert str(result.exception) == "a fault of the library"
