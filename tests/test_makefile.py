"""`make environment`: a Python that is too old is refused before anything is made, and what is broken is made anew."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OLD = f"""#!{sys.executable}
import sys
sys.version_info = (3, 10, 4)
assert sys.argv[1] == "-c", sys.argv
exec(sys.argv[2])
"""
# Makes an environment without a network: its pip installs nothing.
NEW = """#!/bin/sh
echo "$@" >> calls.txt
if [ "$1" = -c ]; then exit 0; fi
rm -rf .venv; mkdir -p .venv/bin
printf '#!/bin/sh\\n' | tee .venv/bin/pip > .venv/bin/uv
chmod +x .venv/bin/*
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A checkout with an environment that an old Python left broken."""
    root = tmp_path / "a checkout"
    for folder in ("outside", ".venv/bin"):
        (root / folder).mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, root)
    program(root / ".venv/bin/python3", OLD)
    return root


def program(path: Path, content: str) -> None:
    path.write_text(content)
    path.chmod(0o755)


def make(root: Path, *variables: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, (root / ".venv/bin", root / "outside", "/usr/bin", "/bin")))
    return subprocess.run(
        ["make", "environment", *variables], cwd=root, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )


def test_an_old_python_is_refused_in_one_sentence(project: Path) -> None:
    program(project / "outside/python3", OLD)
    made = make(project)
    assert made.returncode != 0
    sentence = "python3 is no Python 3.11 or newer; name one, like `make environment PYTHON=python3.11`"
    assert made.stderr.splitlines()[0] == sentence
    assert "Traceback" not in made.stderr
    assert [file.name for file in (project / ".venv").rglob("*")] == ["bin", "python3"]


def test_a_missing_python_is_refused(project: Path) -> None:
    assert "python3.99 is no Python 3.11 or newer" in make(project, "PYTHON=python3.99").stderr


def test_a_broken_environment_is_made_anew_by_the_python_outside(project: Path) -> None:
    program(project / "outside/python3", NEW)
    made = make(project)
    assert made.returncode == 0, made.stderr
    assert (project / "calls.txt").read_text().splitlines()[-1] == "-m venv --clear .venv"
    assert (project / ".venv/.complete").exists()
