"""A command ends well by SIGTERM and with the run that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quest.cli import ending

# A stage that is stopped in the middle of a write, run by the real command line.
WRITING = """
import sys, time
from pathlib import Path
from quest import artifacts, cli, stages
from quest.stages import score

def write(**_):
    with artifacts.atomic(Path(sys.argv[-1])) as partial:
        partial.write_text("half")
        print("writing", flush=True)
        time.sleep(60)

score.run = write
cli.main(["--quiet", "score", "metrics.json", "--output", sys.argv[-1]])
"""
LINE = "ended; nothing half-written is left, run the same command to go on\n"


def writing(target: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITING, str(target)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n", process.stderr and process.stderr.read()
    return process


def test_sigterm_ends_like_ctrl_c(tmp_path: Path) -> None:
    with writing(tmp_path / "score.json", {}) as process:
        assert len(list(tmp_path.iterdir())) == 1
        process.terminate()
        assert process.communicate(timeout=20) == ("", LINE)
    assert process.returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("reaped", [True, False], ids=["reaped", "zombie"])
def test_a_job_ends_with_its_run(tmp_path: Path, reaped: bool) -> None:
    run = subprocess.Popen(["sleep", "60"])
    with writing(tmp_path / "score.json", {ending.RUN: f"{run.pid} {ending._namespace()}"}) as process:
        time.sleep(1.5 * ending._SECONDS)
        assert process.poll() is None
        run.kill()
        if reaped:
            run.wait()
        assert process.communicate(timeout=20) == ("", LINE)
    run.wait()
    assert process.returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


IMPORTING = """
import sys, time
from quest import cli, stages

def command(name):
    print("importing", flush=True)
    time.sleep(60)

stages.command = command
cli.main(["score"])
"""


def test_a_job_ends_with_its_run_while_it_still_imports_what_it_needs() -> None:
    run = subprocess.Popen(["sleep", "60"])
    environment = os.environ | {ending.RUN: f"{run.pid} {ending._namespace()}"}
    with subprocess.Popen(
        [sys.executable, "-c", IMPORTING], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        run.kill()
        run.wait()
        assert process.communicate(timeout=20) == ("", LINE)
    assert process.returncode == 128 + signal.SIGTERM


def test_a_run_of_another_container_is_not_looked_for(tmp_path: Path) -> None:
    run = subprocess.Popen(["true"])
    run.wait()
    with writing(tmp_path / "score.json", {ending.RUN: f"{run.pid} pid:[1]"}) as process:
        time.sleep(3 * ending._SECONDS)
        assert process.poll() is None
        process.kill()


def test_the_handler_is_taken_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with ending.heeded():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
