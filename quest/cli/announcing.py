"""Says within a second what a long command is at: its device, the part of the library at work, and the time left.

A thread looks at what the main one executes, so that no part of the library has to tell. A command that is done within
a second says nothing.
"""

from __future__ import annotations

import copy
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

# What is said where a module, or a function of one, is the innermost of these that the main thread is in.
PHASES = {
    "quest.learning.calibration": "calibration data",
    "quest.learning.reconstruction": "learned rounding",
    "quest.learning.finetuning": "finetuning",
    "quest.learning.scales": "learned scales",
    "quest.learning.sensitivity": "how much each layer matters",
    "quest.methods": "quantizing and finetuning",
    "quest.quantization.network:_quantize_layer": "scales of the weights",
    "quest.diffusion.sampling": "sampling",
    "quest.metrics.measure": "metrics",
    "quest.metrics.evaluation": "metrics",
    "quest.metrics.extractor": "features of images",
    "quest.metrics.own.images": "reading images",
    "quest.embedded.training.optimization": "training",
    "quest.studies": "the study",
    "quest.own.trial": "drawing and timing the folder",
    "quest.estimate.speed": "timing calls here",
    "quest.deploy.checkpoints": "the checkpoint",
    "quest.quantization.account": "the bit account",
    "quest.report.tracking.store": "MLflow's runs",
    "quest.artifacts": "files",
}
# Where a page is served: its address is said, and nothing is at work.
SERVING = {"quest.report.show.serving:show", "quest.report.tracking.page:_until_ended"}
_LOADING = "loading libraries"
_FIRST, _LOOK, _CALM, _STILL = 0.7, 1.0, 5.0, 60.0  # seconds: to the first line; looks; changes; without a change


class Announcer:
    """What a running command says of itself."""

    def __init__(self) -> None:
        self.command = ""
        self.device: Any = None
        self._running = False
        self._started = time.monotonic()
        self._main = threading.main_thread().ident

    def telling(self, command: click.Command) -> click.Command:
        """``command``, which tells when it begins, and on which device; of a group, each of its commands."""
        telling = copy.copy(command)  # the module's own is called again, in tests
        if isinstance(command, click.Group) and isinstance(telling, click.Group):
            telling.commands = {name: self.telling(each) for name, each in command.commands.items()}
            return telling
        callback = command.callback

        def told(*given: Any, **options: Any) -> Any:
            self._running, self.device = True, options.get("device")
            return callback(*given, **options) if callback else None

        telling.callback = told
        return telling

    def line(self) -> str:
        """What is to be said now."""
        where = f" on {self.device}" if self.device is not None else ""
        seconds = time.monotonic() - self._started
        return f"quest {self.command}{where}: {self.phase()}, {seconds:.0f} s so far{_left()}"

    def phase(self) -> str:
        """The part of the library that the main thread is in; empty where a page is served."""
        if not self._running:
            return _LOADING
        frame = sys._current_frames().get(self._main or 0)
        while frame is not None:
            name = frame.f_globals.get("__name__", "")
            for place in (f"{name}:{frame.f_code.co_name}", name, name.rpartition(".")[0]):
                if place in PHASES or place in SERVING:
                    return PHASES.get(place, "")
            frame = frame.f_back
        return "at work"


@contextmanager
def announced(quiet: bool) -> Iterator[Announcer]:
    """Within, a thread says what the command is at, on standard error, unless ``quiet``."""
    announcer, done = Announcer(), threading.Event()
    if not quiet:
        threading.Thread(target=_watch, args=(announcer, done), daemon=True).start()
    try:
        yield announcer
    finally:
        done.set()


def _watch(announcer: Announcer, done: threading.Event) -> None:
    said: dict[Any, float] = {}  # when each state was last told: work that goes to and fro is told once a minute, too
    last, wait = None, _FIRST
    while not done.wait(wait):
        wait, now = _LOOK, time.monotonic()
        state = announcer.device, announcer.phase()
        if not state[1]:
            continue
        calm = 0 if last is None or last[1] == _LOADING or last == state else _CALM
        if last is None or (now - said[last] > calm and now - said.get(state, -_STILL) > _STILL):
            _say(announcer.line())
            said[state], last = now, state


def _say(line: str) -> None:
    """Without breaking a bar that is being drawn."""
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        tqdm.write(line, file=sys.stderr)
    else:
        click.echo(line, err=True)


def _left() -> str:
    """How long the bar that is being drawn will go on at its present rate."""
    bars = list(getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ()))
    for bar in bars:
        given = bar.format_dict
        done = given["n"] - given["initial"]
        if given["total"] and done > 0:
            seconds = given["elapsed"] / done * (given["total"] - given["n"])
            return f", about {seconds:.0f} s left ({given['unit']} {given['n']} of {given['total']})"
    return ""
