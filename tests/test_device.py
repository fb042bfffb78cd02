"""Device names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from quest import artifacts
from quest.device import resolve


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve("auto") == torch.device("cuda")


def test_a_gpu_computes_in_float32(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Torch's default rounds the operands of a convolution to TF32; every artifact says which it was."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    manifest = artifacts.Manifest("test")
    assert artifacts.save_json(tmp_path / "before.json", {}, manifest).versions["tf32"] == "on"
    resolve("auto")
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert artifacts.save_json(tmp_path / "after.json", {}, manifest).versions["tf32"] == "off"


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ValueError, match="--device: 'cuda:1' is not there; this machine has 1 GPUs"):
        resolve("cuda:1")


def test_not_a_device() -> None:
    with pytest.raises(ValueError, match="--device: 'graphics' is not a device; expected auto, cpu or cuda"):
        resolve("graphics")
