"""Locks of a dead run go, those of a living one stay."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from workflow import lock

ROOT = Path(__file__).parents[2]
LOCK = lock.LOCKS / "0.output.lock"
LIVING = """
import sys, time
from pathlib import Path
from workflow import lock
lock.enter(Path(sys.argv[1]))
print(1, flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another run in ``tmp_path``, whose files are locked."""
    command = [sys.executable, "-c", LIVING, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        write_lock(tmp_path)
        yield process
        process.kill()


def write_lock(root: Path) -> None:
    (root / LOCK).parent.mkdir(parents=True, exist_ok=True)
    (root / LOCK).write_text("results/a\n")


def test_locks_of_a_killed_run_go(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    other.kill()
    other.wait()
    lock.enter(tmp_path)
    assert not (tmp_path / LOCK).exists()
    assert [file.name for file in (tmp_path / lock.RUNS).iterdir()] == [f"{socket.gethostname()}.{os.getpid()}"]


def test_locks_of_a_living_run_stay_and_the_refusal_names_it(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    lock.enter(tmp_path)
    assert (tmp_path / LOCK).read_text() == "results/a\n"
    refusal = lock.refusal(tmp_path)
    assert f"process {other.pid} is at work on the same files; wait until it has ended" in refusal
    assert "\n" not in refusal


def test_a_stopped_run_lives(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    other.send_signal(signal.SIGSTOP)
    lock.enter(tmp_path)
    assert (tmp_path / LOCK).exists()


def test_what_a_run_starts_does_not_hold_its_file(tmp_path: Path) -> None:
    starting = LIVING.replace("print", "import subprocess; subprocess.Popen(['sleep', '20']); print")
    with subprocess.Popen([sys.executable, "-c", starting, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    write_lock(tmp_path)
    lock.enter(tmp_path)
    assert not (tmp_path / LOCK).exists()


def test_a_folder_is_entered_again_in_the_same_process(tmp_path: Path) -> None:
    """As plans in one process do; the folder may have been replaced in between."""
    lock.enter(tmp_path)
    write_lock(tmp_path)
    lock.enter(tmp_path)
    assert not (tmp_path / LOCK).exists()
    (tmp_path / lock.RUNS).rename(tmp_path / "elsewhere")
    write_lock(tmp_path)
    lock.enter(tmp_path)
    assert not (tmp_path / LOCK).exists()


def test_a_run_of_another_machine_may_live(tmp_path: Path) -> None:
    write_lock(tmp_path)
    run = tmp_path / lock.RUNS / "elsewhere.7"
    run.parent.mkdir(parents=True)
    run.write_text('{"host": "elsewhere", "boot": "another"}')
    lock.enter(tmp_path)
    assert (tmp_path / LOCK).exists()
    assert "process 7 on elsewhere is at work" in lock.refusal(tmp_path)


def test_a_container_of_this_machine_is_told_by_its_kernel(tmp_path: Path) -> None:
    write_lock(tmp_path)
    run = tmp_path / lock.RUNS / "container.7"
    run.parent.mkdir(parents=True)
    run.write_text(f'{{"host": "container", "boot": "{Path("/proc/sys/kernel/random/boot_id").read_text().strip()}"}}')
    lock.enter(tmp_path)
    assert not (tmp_path / LOCK).exists()


def test_without_flock_it_is_left_to_snakemake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    write_lock(tmp_path)
    lock.enter(tmp_path)
    assert (tmp_path / LOCK).exists()
    assert re.search(r"if none does, `snakemake --unlock`", lock.refusal(tmp_path))
