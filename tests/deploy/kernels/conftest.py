"""Triton's interpreter: kernels of a GPU, on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def interpreted() -> Callable[[str], None]:
    """Runs a program with the modules of this folder, in a process of its own, since the interpreter is chosen when a
    kernel is defined."""
    pytest.importorskip("triton")

    def run(program: str) -> None:
        given = f"import sys; sys.path.insert(0, sys.argv[1])\n{program}\nprint('as it should be')"
        environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", given, str(Path(__file__).parent)],
            capture_output=True, text=True, env=environment, check=False,
        )  # fmt: skip
        assert done.stdout.strip().endswith("as it should be"), done.stderr[-3000:]

    return run
