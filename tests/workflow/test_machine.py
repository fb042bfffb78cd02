"""The name of a machine: its GPUs where it has any, else its processor."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from workflow import machine


def test_gpus_of_one_kind_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200'\necho 'NVIDIA H200'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    assert machine.name() == "2 × NVIDIA H200"
    tool.write_text("#!/bin/sh\necho 'no devices were found'\nexit 6\n")
    assert machine.name().startswith(f"{os.cpu_count()} × ")
    assert "devices" not in machine.name()
