"""Scratch copies of the workflow, and an environment in which `quest` is a stub, so that whole runs take seconds."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from project import Project, configured, scratch


@pytest.fixture(scope="session")
def stub_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with all that this one has, but a stub for `quest`."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "outer.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    quest = folder / "bin" / "quest"
    quest.write_text(f"#!{folder}/bin/python -SE\n" + (Path(__file__).parent / "stub_quest.py").read_text())
    quest.chmod(0o755)
    for module in ("snakemake", "dvc"):
        program = folder / "bin" / module
        program.write_text(f'#!/bin/sh\nexec "{folder}/bin/python" -m {module} "$@"\n')
        program.chmod(0o755)
    return folder / "bin"


@pytest.fixture(autouse=True)
def _this_process_as_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Planning changes the working directory, sys.path and the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("PATH", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        monkeypatch.setenv(name, os.environ.get(name, ""))


@pytest.fixture
def default_project(tmp_path: Path, stub_environment: Path) -> Project:
    """A scratch copy of this project with its own configuration, and with nothing run yet."""
    return scratch(tmp_path / "project", stub_environment)


@pytest.fixture
def project(tmp_path: Path, stub_environment: Path) -> Project:
    """A scratch copy of this project with the run above, and with nothing run yet."""
    return configured(scratch(tmp_path / "project", stub_environment))


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory, stub_environment: Path) -> Project:
    """A project in which everything has run; to be copied, not changed."""
    project = configured(scratch(tmp_path_factory.mktemp("whole") / "project", stub_environment))
    project.snakemake()
    return project


@pytest.fixture
def finished(whole_run: Project, tmp_path: Path) -> Project:
    """A scratch copy of a project in which everything has run."""
    shutil.copytree(whole_run.root, tmp_path / "project")
    return Project(tmp_path / "project", whole_run.bin)
