"""The benchmark table, on few rows and a narrow width: what is in it, not how fast anything is."""

from __future__ import annotations

import re
import time

import pytest

from quest.bench import metrics


@pytest.mark.parametrize("device", ["cpu"])
def test_a_line_each_and_the_agreement(monkeypatch: pytest.MonkeyPatch, device: str):
    monkeypatch.setattr(metrics, "WIDTH", 16)
    monkeypatch.setattr(metrics._Given, "num_features", 16)
    monkeypatch.setattr("torch.cuda.is_available", lambda: device == "cuda")
    monkeypatch.setattr(metrics, "_extraction", lambda *_: [])
    text = metrics.run(images=64, rows=200, rounds=1)
    assert "TF32 off, bfloat16 off" in text
    gap = re.search(r"relative difference of torchmetrics (\S+)", text)
    assert gap is not None
    assert float(gap[1].rstrip(",")) < 1e-9
    for task in ("FID statistics of 200 × 16", "FID from statistics, D = 16"):
        assert re.search(rf"{task}, s +cpu +quest +\S+ +1.00×", text)
        assert re.search(rf"{task}, s +cpu +torchmetrics", text)


def test_what_takes_long_is_called_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metrics, "LONG", 0.05)
    calls = {"quick": 0, "slow": 0}

    def contestant(name: str, seconds: float):
        def function() -> None:
            calls[name] += 1
            time.sleep(seconds)

        return function

    found = metrics._take_turns({"quick": contestant("quick", 0.001), "slow": contestant("slow", 0.1)}, "cpu", 3)
    assert calls == {"quick": 4, "slow": 1}
    assert found["slow"] == pytest.approx(0.1, abs=0.05)
    assert found["quick"] < 0.05


def test_without_the_network_the_rest_is_timed(monkeypatch: pytest.MonkeyPatch):
    def absent(*_: object) -> None:
        raise metrics.ArtifactError("inception-fid needs torch-fidelity")

    monkeypatch.setattr(metrics, "WIDTH", 16)
    monkeypatch.setattr(metrics._Given, "num_features", 16)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(metrics, "_extraction", absent)
    text = metrics.run(images=64, rows=200, rounds=1)
    assert "features not timed: inception-fid needs torch-fidelity" in text
    assert "FID from statistics" in text
