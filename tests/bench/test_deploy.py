"""The benchmark of packed networks, on a tiny model."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch

from quest.bench import deploy, others
from quest.bench.deploy import Row
from quest.diffusion import denoiser as denoisers


def test_on_a_cpu(model_file: Path) -> None:
    said, measured = rows(model_file, "w4a8")
    assert "modules: " in said[0]
    own = ["float32", "bf16", "w4a8, simulated", "w4a8 packed, floats", "w4a8 packed, integers"]
    assert list(measured)[: len(own)] == own
    assert all(row.seconds > 0 and row.batch == 2 for row in measured.values())
    assert measured["w4a8 packed, floats"].weights_mib < measured["bf16"].weights_mib < measured["float32"].weights_mib
    line, head = measured["float32"].line(20), deploy.header(20).splitlines()
    assert line.count("|") == head[0].count("|") == head[1].count("|")
    apart = {line.partition(":")[0]: float(line.split()[-7]) for line in said if line.endswith("output apart")}
    assert apart.keys() == measured.keys()
    assert apart["w4a8 packed, integers"] < 0.05 < apart["float32"]


def test_others_that_are_not_installed_are_named(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(others, "missing", lambda package: f"not measured: {package} is not installed")
    said, measured = rows(model_file, "w8a8")
    assert len(measured) == 5
    for what, package in {
        "torchao int8 dynamic, linear layers": "torchao",
        "OpenVINO, float32": "openvino",
        "OpenVINO, w8a8": "openvino",
    }.items():
        assert f"{what}: not measured: {package} is not installed" in said


def test_torchao_beside(model_file: Path) -> None:
    pytest.importorskip("torchao")
    _, measured = rows(model_file, "w8a8")
    assert measured["torchao int8 dynamic, linear layers"].weights_mib < measured["float32"].weights_mib


def test_openvino_beside(model_file: Path) -> None:
    pytest.importorskip("openvino")
    _, measured = rows(model_file, "w8a8")
    assert {"OpenVINO, float32", "OpenVINO, w8a8"} < measured.keys()
    loaded = denoisers.load(model_file)
    given = (torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.full((2,), 500))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        way = others.openvino(loaded.network, given, Path(folder))
        assert isinstance(way, others.Way)
        torch.testing.assert_close(way.call(), loaded.network(*given).sample, rtol=1e-3, atol=1e-4)
        assert not loaded.network.training
    _, four = rows(model_file, "w4a4")
    assert "OpenVINO, w4a4" not in four, "ONNX takes activations of 8 bits"


def rows(model: Path, bits: str) -> tuple[list[str], dict[str, Row]]:
    """What the benchmark says of a model on the CPU, and its rows by name."""
    found = list(deploy.on_cpu(denoisers.load(model), bits, 2, repeats=1))
    return [each for each in found if isinstance(each, str)], {row.what: row for row in found if isinstance(row, Row)}


def test_hours_of_a_cell() -> None:
    """A tenth of a second for 10 images, and so 10,000 seconds for all of them in 20 steps."""
    row = Row("float32", 10, 0.1, 1.0, 1.0)
    assert row.hours(20) == pytest.approx(10_000 / 3600)
    assert "| 2.8 |" in row.line(20)
    assert "hours for 50,000 images of 20 steps" in deploy.header(20)
