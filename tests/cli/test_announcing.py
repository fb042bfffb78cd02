"""A command that takes long says so within a second, with device, phase and time left; a short one says nothing."""

from __future__ import annotations

import importlib.util
import itertools
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import click
import pytest

from quest.cli import announcing

SLOW = """
import sys, time
from quest import stages

def slow(name):
    from tqdm import tqdm
    from quest.stages import preview
    preview.run = lambda **_: wait(tqdm)
    return command(name)

def wait(tqdm):
    for _ in tqdm(range(100), unit="batch"):
        time.sleep(0.05)

command, stages.command = stages.command, slow
from quest.cli import announcing, main
announcing._STILL = 1.0
main([*sys.argv[1:], "preview", "nothing", "--output", "nothing"])
"""


def started(*options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOW, *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_a_long_command_says_what_it_is_at():
    process = started()
    assert process.stderr is not None
    said = [line for line in process.stderr.read().splitlines() if line.startswith("quest ")]
    assert re.fullmatch(r"quest preview: (loading libraries|at work), [12] s so far.*", said[0])
    assert re.fullmatch(r"quest preview: at work, \d+ s so far, about \d+ s left \(batch \d+ of 100\)", said[-1])


def test_quiet_says_nothing():
    process = started("--quiet")
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait() == 0


def test_a_short_command_says_nothing(capfd: pytest.CaptureFixture[str]):
    with announcing.announced(quiet=False):
        time.sleep(0.2)
    time.sleep(1)
    assert capfd.readouterr().err == ""


def test_the_first_line_comes_within_a_second(capfd: pytest.CaptureFixture[str]):
    with announcing.announced(quiet=False) as announcer:
        announcer.command = "sample"
        command = announcer.telling(click.Command("sample", callback=lambda **_: None))
        assert command.callback is not None
        command.callback(device="cuda:0")
        deadline = time.monotonic() + 5
        while not (said := capfd.readouterr().err) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert re.match(r"quest sample on cuda:0: at work, 1 s so far", said)


def test_a_command_tells_its_device():
    announcer = announcing.Announcer()
    given: list[object] = []
    callback = announcer.telling(click.Command("x", callback=lambda device: given.append(device))).callback
    assert callback is not None
    callback(device="cpu")
    assert (announcer.device, given) == ("cpu", ["cpu"])


def test_a_command_of_a_group_tells_as_well():
    announcer = announcing.Announcer()
    group = click.Group("bench", commands={"x": click.Command("x", callback=lambda device: announcer.phase())})
    assert announcer.phase() == "loading libraries"
    callback = announcer.telling(group).commands["x"].callback  # type: ignore[attr-defined]
    assert callback(device="cpu") == "at work"
    assert announcer.device == "cpu"


def test_the_innermost_part_of_the_library_is_the_phase():
    """The main thread is in `artifacts`, called by a stage; another thread asks."""
    found: list[str] = []
    inner: dict[str, Any] = {"__name__": "quest.artifacts", "ask": lambda: found.append(_asked())}
    outer: dict[str, Any] = {"__name__": "quest.stages.sample"}
    exec("def write(): ask()", inner)
    exec("def run(write): write()", outer)
    outer["run"](inner["write"])
    assert found == ["files"]


def _asked() -> str:
    answers: list[str] = []
    announcer = announcing.Announcer()
    announcer._running = True
    thread = threading.Thread(target=lambda: answers.append(announcer.phase()))
    thread.start()
    thread.join()
    return answers[0]


def test_a_function_may_have_a_phase_of_its_own():
    found: list[str] = []
    network: dict[str, Any] = {"__name__": "quest.quantization.network", "ask": lambda: found.append(_asked())}
    exec("def _quantize_layer(): ask()\ndef forward(): ask()", network)
    method: dict[str, Any] = {"__name__": "quest.methods.efficientdm"}
    exec("def quantize(call): call()", method)
    method["quantize"](network["_quantize_layer"])
    method["quantize"](network["forward"])
    assert found == ["scales of the weights", "quantizing and finetuning"]


def test_while_a_page_is_served_nothing_is_said(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    monkeypatch.setattr(announcing, "_FIRST", 0.01)
    monkeypatch.setattr(announcing, "_LOOK", 0.01)
    found: list[str] = []
    serving: dict[str, Any] = {"__name__": "quest.report.show.serving", "serve": lambda: time.sleep(0.5)}
    serving["ask"] = lambda: found.append(_asked())
    exec("def show(): begin(); ask(); serve()", serving)

    def begin() -> None:
        watched.__enter__()._running = True

    watched = announcing.announced(quiet=False)
    serving["begin"] = begin
    serving["show"]()
    watched.__exit__(None, None, None)
    assert found == [""]
    assert capfd.readouterr().err == ""


def test_what_goes_to_and_fro_is_said_once_a_minute(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    for name in ("_FIRST", "_LOOK", "_CALM"):
        monkeypatch.setattr(announcing, name, 0.01)
    phases = itertools.cycle(["finetuning", "sampling"])
    asked: list[str] = []
    announcer = announcing.Announcer()
    monkeypatch.setattr(announcer, "phase", lambda: asked.append(next(phases)) or asked[-1])
    done = threading.Event()
    thread = threading.Thread(target=announcing._watch, args=(announcer, done))
    thread.start()
    deadline = time.monotonic() + 30
    while len(asked) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    done.set()
    thread.join()
    assert len(capfd.readouterr().err.splitlines()) == 2


@pytest.mark.parametrize("place", [*announcing.PHASES, *sorted(announcing.SERVING)])
def test_every_phase_is_of_a_module_that_is_there(place: str):
    module, _, function = place.partition(":")
    root = Path(__file__).parents[2].joinpath(*module.split("."))
    assert root.with_suffix(".py").exists() or (root / "__init__.py").exists()
    assert not function or f"def {function}(" in root.with_suffix(".py").read_text(encoding="utf-8")
    assert importlib.util.find_spec("quest") is not None
