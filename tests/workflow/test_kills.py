"""A run that was killed goes on by the same command, and one that lives is not disturbed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from project import Project

from workflow import records

pytestmark = pytest.mark.workflow

SLOW = "results/finetune/digits/quest-w4a4-seed0.safetensors"
NOTHING = "Nothing to be done"


@contextmanager
def in_the_middle(project: Project) -> Iterator[subprocess.Popen[bytes]]:
    """A run that is at work on SLOW, half of which is written."""
    process = subprocess.Popen(
        ["snakemake", "--cores", "1", SLOW],
        cwd=project.root,
        env=project.environment(QUEST_STUB_SLOW=SLOW),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not (project.root / SLOW).exists():
            assert process.poll() is None, "snakemake ended before the job began"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_killed_run_goes_on_by_the_same_command(project: Project) -> None:
    with in_the_middle(project) as process:
        process.kill()
        process.wait()
        assert list((project.root / ".snakemake/locks").glob("*.lock"))
    project.snakemake("--dry-run", SLOW)
    assert not list((project.root / ".snakemake/locks").glob("*.lock"))
    assert "half" in (project.root / SLOW).read_text()
    project.calls()
    project.snakemake(SLOW)
    assert project.calls() == {f"finetune {SLOW}"}
    assert "half" not in (project.root / SLOW).read_text()
    assert NOTHING in project.snakemake("--dry-run", SLOW)


def test_a_living_run_refuses_another_in_one_sentence(project: Project) -> None:
    with in_the_middle(project) as process:
        output = project.snakemake(SLOW, check=False)
        said = f"{project.root}: process {process.pid} is at work on the same files; wait until it has ended, or end it"
        assert said in output
        assert "unlock" not in output
        assert "Traceback" not in output
        assert process.poll() is None
        record = project.root / ".snakemake/metadata" / records._encoded("results/half.json")
        record.write_text("{half of a record that the run is wri")
        project.snakemake("--dry-run", SLOW)  # plans are never refused, and leave it alone
        assert record.exists()
    project.snakemake("--dry-run", SLOW)
    assert not record.exists()
