"""Device names."""

from __future__ import annotations

import pytest
import torch

from quest.device import resolve


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve("auto") == torch.device("cuda")


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ValueError, match="--device: 'cuda:1' is not there; this machine has 1 GPUs"):
        resolve("cuda:1")


def test_not_a_device() -> None:
    with pytest.raises(ValueError, match="--device: 'graphics' is not a device; expected auto, cpu or cuda"):
        resolve("graphics")
