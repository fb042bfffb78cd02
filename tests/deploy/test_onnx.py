"""ONNX files against onnxruntime, a reader that is not ours."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import quest
from quest.artifacts import ArtifactError
from quest.cli import main
from quest.deploy.onnx import export_onnx
from quest.deploy.quantized import QuantizedModel
from quest.diffusion import denoiser as denoisers

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
ROOT = Path(__file__).parents[2]
FEW: dict[str, Any] = {
    "steps": 4,
    "calibration": {"steps": 4, "samples_per_step": 2},
    "quantizer": {"weight_search": "max", "activation_search": "max"},
    "settings": {"sets": 4},
    "device": "cpu",
}


@pytest.fixture(scope="module")
def model(digits_file: Path) -> QuantizedModel:
    return quest.quantize(denoisers.load(digits_file), "w8a8", "nearest", **FEW)


def test_onnxruntime_reproduces_the_digits_model(model: QuantizedModel, tmp_path: Path) -> None:
    """At every calibrated timestep and for other batches: up to activations that a rounding of sums moves by a code,
    which is far less than what quantizing changes."""
    file = export_onnx(model, tmp_path / "digits.onnx")
    graph = onnx.load(file)
    onnx.checker.check_model(graph)
    kinds = Counter(node.op_type for node in graph.graph.node)
    layers, sites = len(model.network.layers()), len(model.network.sites())
    assert (kinds["QuantizeLinear"], kinds["DequantizeLinear"]) == (sites, sites + layers)
    stored = {each.name: each for each in graph.graph.initializer}
    read = [node.input[0] for node in graph.graph.node if node.op_type == "DequantizeLinear"]
    weights = [stored[name] for name in read if name in stored]
    assert len(weights) == layers
    assert all(each.data_type == onnx.TensorProto.UINT8 for each in weights)

    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for step, timestep in enumerate(model.around.sampler(model.sampler).timesteps.tolist()):
        x = torch.randn(step + 1, 1, 16, 16, generator=torch.Generator().manual_seed(step))
        model.network.set_step(step)
        with torch.no_grad():
            expected = model.network(x, timestep).sample
            with model.network.quantizing(weights=False, activations=False):
                original = model.network(x, timestep).sample
        given = {"sample": x.numpy(), "timestep": torch.tensor([timestep]).numpy()}
        found = torch.from_numpy(session.run(None, given)[0])
        distance, quantized = (float((each - expected).norm()) for each in (found, original))
        assert distance < 0.01 * float(expected.norm())
        assert distance < 0.5 * quantized


def test_a_conditional_model(tmp_path: Path) -> None:
    golden, name = ROOT / "tests/golden", "imagenet_ldm4"
    model = quest.quantize(golden / f"{name}.ckpt", "w8a8", "nearest", architecture=golden / f"{name}.json", **FEW)
    session = runtime.InferenceSession(export_onnx(model, tmp_path / "x.onnx"), providers=["CPUExecutionProvider"])
    x, _, context = model.network.example
    x = torch.randn(2, *x.shape[1:], generator=torch.Generator().manual_seed(0))
    context = context.expand(2, -1, -1)
    last = model.around.sampler(model.sampler).timesteps.tolist()[-1]
    model.network.set_step(3)
    with torch.no_grad():
        expected = model.network(x, last, context).sample
    given = {"sample": x.numpy(), "timestep": torch.tensor([last]).numpy(), "encoder_hidden_states": context.numpy()}
    found = torch.from_numpy(session.run(None, given)[0])
    # An untrained network's activations lie at the edges of their codes: PyTorch's own convolutions, adding up in
    # another order, are as far apart. Wrong scales or heads are more than ten times as far.
    assert float((found - expected).norm() / expected.norm()) < 0.1


def test_what_has_no_such_form(model: QuantizedModel, tmp_path: Path) -> None:
    golden = ROOT / "tests/golden"
    other = quest.quantize(
        golden / "bedrooms_ldm4.ckpt", "w4a4", "nearest", architecture=golden / "bedrooms_ldm4.json", **FEW
    )
    with pytest.raises(ValueError, match=r"found activations of \(4,\) bits.*ONNX takes 8 bits"):
        export_onnx(other, tmp_path / "x.onnx")
    of_multiples = {"quantizer": FEW["quantizer"] | {"activation_granularity": {"4": "multiples"}}}
    other = quest.quantize(
        *(golden / "bedrooms_ldm4.ckpt", "w4a4", "nearest"),
        architecture=golden / "bedrooms_ldm4.json",
        **FEW | of_multiples,
    )
    with pytest.raises(
        ValueError, match=r"found activations of \(4,\) bits, .* 1 scales and \d+ zero points; ONNX takes 8"
    ):
        export_onnx(other, tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())
    (tmp_path / "x.onnx").touch()
    with pytest.raises(ArtifactError, match="is there already; choose another, or --force"):
        export_onnx(model, tmp_path / "x.onnx")


def test_the_command(model: QuantizedModel, digits_file: Path, tmp_path: Path) -> None:
    quest.save(model, tmp_path / "w8a8.safetensors")
    (tmp_path / "w8a8.model.safetensors").unlink(missing_ok=True)
    arguments = ["export", str(tmp_path / "w8a8.safetensors"), "--model", str(digits_file), "--format", "onnx"]
    run = CliRunner().invoke(main, [*arguments, "--output", str(tmp_path / "x.onnx")])
    assert run.exit_code == 0, run.output
    assert "x.onnx: " in run.output
    onnx.checker.check_model(onnx.load(tmp_path / "x.onnx"))
