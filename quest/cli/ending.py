"""How a command ends before it is done: by Ctrl-C, by SIGTERM, or because the run that started it is no more.

In each case an exception unwinds it, so that nothing half-written stays. Snakemake, killed, cannot end its jobs; they
would go on beside those of the next run. So a run names its process in the environment, and its jobs look after it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

RUN = "QUEST_RUN"  # "<process> <namespace of process numbers>"
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM  # exit codes
_NAMESPACE = "/proc/self/ns/pid"
_SECONDS = 0.5  # between two looks


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


def run_variables() -> dict[str, str]:
    """What a run sets in the environment of its jobs."""
    return {RUN: f"{os.getpid()} {_namespace()}"}


@contextmanager
def heeded() -> Iterator[None]:
    """Within, SIGTERM raises `Terminated`, and comes when the run that started this process has ended."""
    before = signal.signal(signal.SIGTERM, _terminate)
    run, _, namespace = os.environ.get(RUN, "").partition(" ")
    if run.isdecimal() and namespace == _namespace():  # in another, the number would be another process's
        threading.Thread(target=_follow, args=(int(run),), daemon=True).start()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_code(interrupt: KeyboardInterrupt) -> int:
    return TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # who asks twice does not wait
    raise Terminated


def _follow(run: int) -> None:
    while _lives(run):
        time.sleep(_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"  # ended, not yet missed
    except OSError:
        return True


def _namespace() -> str:
    try:
        return os.readlink(_NAMESPACE)
    except OSError:
        return ""
