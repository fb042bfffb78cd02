"""A conversion that was killed, twice, goes on where it was and ends as one that nothing stopped."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

import quest
from tests.own import brought

ROOT = Path(__file__).parents[2]
KILLED = """
import os, signal, sys
from quest import artifacts
from quest.cli import main
from quest.estimate.calls import Calls, Took

Calls.take = lambda *_: Took(0.001, 1e6)
save = artifacts.save_tensors

def save_and_die(path, *more):
    save(path, *more)
    if str(path).endswith(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return artifacts.read_manifest(path, more[-1].kind)

artifacts.save_tensors = save_and_die
main(sys.argv[2:])
"""


def killed(after: str, *arguments: str) -> None:
    """Runs the command until it has written a file, and kills it with SIGKILL."""
    done = subprocess.run([sys.executable, "-c", KILLED, after, *arguments], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_two_kills(here: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    brought.pixels().save_pretrained("theirs")
    Path("few.yaml").write_text(yaml.safe_dump(brought.FEW))
    given = ["--quiet", "quantize", "theirs", "--bits", "w4a8", "--steps", "2", "--output", "ours"]
    given += ["--settings", "few.yaml", "--device", "cpu"]
    killed("rounding.progress.safetensors", *given)
    assert (here / "ours.work/calibration.safetensors").is_file()
    assert not (here / "ours.work/rounding.safetensors").exists()
    learned = (here / "ours.work/calibration.safetensors").stat().st_mtime_ns
    killed("trial.0.safetensors", *given)
    assert (here / "ours.work/calibration.safetensors").stat().st_mtime_ns == learned, "not recorded again"
    assert not (here / "ours").exists(), "nothing half-written"

    same: dict[str, Any] = {"bits": "w4a8", "steps": 2, "settings": brought.FEW, "device": "cpu"}
    quest.convert("theirs", "ours", **same)
    assert {file.name for file in here.iterdir()} == {"theirs", "few.yaml", "ours"}
    whole = quest.convert("theirs", "whole", **same)
    network = "unet/diffusion_pytorch_model.safetensors"
    ours, expected = load_file(here / "ours" / network), load_file(here / "whole" / network)
    assert ours.keys() == expected.keys()
    assert all((ours[name] == expected[name]).all() for name in expected), "bit for bit"
    report = json.loads((here / "ours/report.json").read_text())
    assert report["closeness"] == whole.report["closeness"]
    assert report["took_seconds"].keys() == whole.report["took_seconds"].keys()
