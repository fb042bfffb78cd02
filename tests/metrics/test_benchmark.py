"""The benchmark table, on few rows and a narrow width: what is in it, not how fast anything is."""

from __future__ import annotations

import re

import pytest

from quest.metrics import benchmark


@pytest.mark.parametrize("device", ["cpu"])
def test_a_line_each_and_the_agreement(monkeypatch: pytest.MonkeyPatch, device: str):
    monkeypatch.setattr(benchmark, "WIDTH", 16)
    monkeypatch.setattr(benchmark._Given, "num_features", 16)
    monkeypatch.setattr("torch.cuda.is_available", lambda: device == "cuda")
    monkeypatch.setattr(benchmark, "_extraction", lambda *_: [])
    text = benchmark.run(images=64, rows=200, rounds=1)
    assert "TF32 off, bfloat16 off" in text
    gap = re.search(r"relative difference of torchmetrics (\S+)", text)
    assert gap is not None
    assert float(gap[1].rstrip(",")) < 1e-9
    for task in ("FID statistics of 200 × 16", "FID from statistics, D = 16"):
        assert re.search(rf"{task}, s +cpu +quest +\S+ +1.00×", text)
        assert re.search(rf"{task}, s +cpu +torchmetrics", text)


def test_without_the_network_the_rest_is_timed(monkeypatch: pytest.MonkeyPatch):
    def absent(*_: object) -> None:
        raise benchmark.ArtifactError("inception-fid needs torch-fidelity")

    monkeypatch.setattr(benchmark, "WIDTH", 16)
    monkeypatch.setattr(benchmark._Given, "num_features", 16)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(benchmark, "_extraction", absent)
    text = benchmark.run(images=64, rows=200, rounds=1)
    assert "features not timed: inception-fid needs torch-fidelity" in text
    assert "FID from statistics" in text
