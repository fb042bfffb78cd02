"""What `import quest` costs and offers, and the lines of the README, as they stand there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import quest

ROOT = Path(__file__).parents[1]
MODEL = "data/models/digits/denoiser.safetensors"


def python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, env=environment)


def import_seconds() -> float:
    """What `import quest` adds to the start of Python."""
    log = python("-X", "importtime", "-c", "import quest").stderr
    (line,) = re.findall(r"import time:\s+\d+ \|\s+(\d+) \| quest$", log, flags=re.MULTILINE)
    return int(line) / 1e6


@pytest.mark.parametrize("own", [{}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}])
def test_threads_do_not_wait_awake_for_long(own: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Set before PyTorch reads it; a choice of one's own stays."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    wanted = f"{{name: os.environ.get(name) for name in {names}}}, 'torch' in sys.modules"
    program = f"import quest, json, os, sys; print(json.dumps([{wanted}]))"
    found, has_torch = json.loads(python("-c", program).stdout)
    assert {name: value for name, value in found.items() if value} == (own or {"GOMP_SPINCOUNT": "10000"})
    assert not has_torch


def test_what_it_offers() -> None:
    for name in quest.__all__:
        assert getattr(quest, name).__name__ == name
        assert name in dir(quest)
    with pytest.raises(AttributeError, match="module 'quest' has no attribute 'quantise'"):
        _ = quest.quantise  # type: ignore[attr-defined]


def digits_model() -> Path:
    """The digits model, pulled or as it lies in the store."""
    if (ROOT / MODEL).exists():
        return ROOT / MODEL
    lock = yaml.safe_load((ROOT / "dvc.lock").read_text())
    (folder,) = [out["md5"] for out in lock["stages"]["pretrain"]["outs"] if out["path"] == "data/models"]
    files = {entry["relpath"]: entry["md5"] for entry in json.loads(stored(folder).read_text())}
    return stored(files["digits/denoiser.safetensors"])


def stored(md5: str) -> Path:
    return ROOT / "data/store/files/md5" / md5[:2] / md5[2:]


def test_the_lines_of_the_readme(tmp_path: Path) -> None:
    (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(lines.splitlines()) <= 10
    (tmp_path / MODEL).parent.mkdir(parents=True)
    (tmp_path / MODEL).symlink_to(digits_model())
    shown = "print(tuple(images.shape), images.dtype, len(images.unique()) > 2, repr(model))"
    done = python("-c", lines + shown, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(16, 1, 16, 16) torch.uint8 True <quest w4a8, 10 ddim steps>"
    written = {file.name for file in tmp_path.iterdir()}
    assert written == {"data", "digits-w4a8.safetensors"}, "the model is an artifact already"
