"""Images through integer kernels: as close to the fake-quantized ones as two libraries of floats are, or refused."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quest.artifacts import Manifest, load_tensors
from quest.config.dataset import DatasetSettings
from quest.config.values import Bits
from quest.deploy import backends, checkpoints
from quest.deploy.backends.integer import IntegerNetwork
from quest.deploy.checkpoints import Checkpoint
from quest.deploy.kernels import cpu
from quest.deploy.start import recipe as make_recipe
from quest.diffusion.correction import Correction
from quest.diffusion.denoiser import Denoiser
from quest.learning.calibration import Calibration
from quest.learning.finetuning import calibrate_activations
from quest.quantization.network import QuantizedNetwork
from quest.stages import sample

CPU = torch.device("cpu")
PER_TENSOR = {"activation_granularity": {"4": "per_tensor", "8": "per_tensor"}}
OFFSETS = {"activation_granularity": {"4": "offsets", "8": "per_tensor"}}
MULTIPLES = {"activation_granularity": {"4": "multiples", "8": "per_tensor"}}
MEAN, MOST = 0.25, 16
"""Grey levels of 255 that the images may differ by (docs/deploy.md has those of trained models)."""


def drawn(
    backend: str,
    settings: DatasetSettings,
    model: Path,
    checkpoint: Checkpoint,
    folder: Path,
) -> tuple[Tensor, Manifest]:
    """The first shard of a checkpoint as the stage draws it."""
    file, output = folder / "checkpoint.safetensors", folder / f"{backend}.safetensors"
    checkpoints.save(file, checkpoint)
    sample.run("tiny", settings, model, file, 0, 0, output, CPU, backend)  # type: ignore[arg-type]
    artifact = load_tensors(output, "samples")
    return artifact.tensors["images"].int(), artifact.manifest


def assert_close(images: Tensor, expected: Tensor) -> None:
    apart = (images - expected).abs()
    assert float(apart.float().mean()) <= MEAN
    assert int(apart.max()) <= MOST


@pytest.mark.parametrize(
    ("bits", "scales"),
    [("w8a8", PER_TENSOR), ("w4a8", PER_TENSOR), ("w4a4", PER_TENSOR), ("w4a4", OFFSETS), ("w4a4", MULTIPLES)],
)
def test_images_of_integers_are_those_of_fake_quantization(
    bits: str,
    scales: dict[str, Any],
    model_file: Path,
    denoiser: Denoiser,
    settings: DatasetSettings,
    make_quantized: Callable[..., QuantizedNetwork],
    tmp_path: Path,
) -> None:
    network = make_quantized(bits, **scales)
    checkpoint = Checkpoint(network, "nearest", settings.sampler, inputs={"model": denoiser.sha256})
    given = settings, model_file, checkpoint, tmp_path
    fake, before = drawn("fake", *given)
    integer, manifest = drawn("integer", *given)
    assert_close(integer, fake)
    assert "backend" not in before.settings
    assert manifest.settings == before.settings | {"backend": "integer"}
    kernels = manifest.notes.pop("kernels")
    assert manifest.notes == before.notes
    assert kernels == {"reference" if cpu.lacking(CPU) else "cpu": len(network.layers())}
    sample.run("tiny", settings, model_file, None, 0, 0, tmp_path / "fp.safetensors", CPU)
    full = load_tensors(tmp_path / "fp.safetensors", "samples").tensors["images"].int()
    assert not torch.equal(integer, full)


def test_a_protocol_asks_for_it(
    model_file: Path,
    denoiser: Denoiser,
    make_settings: Callable[..., DatasetSettings],
    make_quantized: Callable[..., QuantizedNetwork],
    tmp_path: Path,
) -> None:
    settings = make_settings(evaluation={"backend": "integer"})
    checkpoint, file = tmp_path / "checkpoint.safetensors", tmp_path / "samples.safetensors"
    own = Checkpoint(make_quantized("w8a8"), "nearest", settings.sampler, inputs={"model": denoiser.sha256})
    checkpoints.save(checkpoint, own)
    for given, expected in ((None, "integer"), ("fake", None)):
        sample.run("tiny", settings, model_file, checkpoint, 0, 0, file, CPU, given)  # type: ignore[arg-type]
        assert load_tensors(file, "samples").manifest.settings.get("backend") == expected
    sample.run("tiny", settings, model_file, None, 0, 0, file, CPU)
    assert "backend" not in load_tensors(file, "samples").manifest.settings, "full precision has no integers"
    with pytest.raises(ValueError, match=r"--backend integer: full precision is not on grids; name a low-bit"):
        sample.run("tiny", settings, model_file, None, 0, 0, file, CPU, "integer")


def test_the_step_that_is_set_chooses_the_scales(make_quantized: Callable[..., QuantizedNetwork]) -> None:
    """Not the timestep of the call, which PLMS takes from the next step while it is at its first."""
    network = make_quantized("w8a8", sets=4)
    integer = IntegerNetwork(network, [750, 500, 250, 0])
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    outputs = []
    with torch.no_grad():
        for step in range(4):
            for each in (network, integer):
                each.set_step(step)
            found, expected = (each(x, 500).sample for each in (integer, network))
            assert float((found - expected).norm() / expected.norm()) < 2e-2
            outputs.append(found)
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(outputs))


def test_a_corrected_sampler_and_bits_of_steps(
    denoiser: Denoiser,
    model_file: Path,
    calibration: Calibration,
    make_settings: Callable[..., DatasetSettings],
    tmp_path: Path,
) -> None:
    """PTQD's: the mean of the error and its variance both act, as in the stage."""
    settings = make_settings(sampler={"eta": 1.0})
    recipe = make_recipe(settings, Bits.parse("w4a8"), 2, lower=(6,))
    network = QuantizedNetwork(denoiser.network, recipe, denoiser.example())
    for width in recipe.widths:
        network.use([width] * 4)
        calibrate_activations(network, calibration)
    network.use([8, 6, 8, 6])
    corrections = {
        "none": None,
        "mean": Correction(torch.full((4,), 0.1), torch.full((4, 1), 0.2), torch.zeros(4)),
        "both": Correction(torch.full((4,), 0.1), torch.full((4, 1), 0.2), torch.full((4,), 0.3)),
    }
    images = {}
    for name, correction in corrections.items():
        checkpoint = Checkpoint(
            network, "ptqd", settings.sampler, correction=correction, inputs={"model": denoiser.sha256}
        )
        fake, integer = (
            drawn(backend, settings, model_file, checkpoint, tmp_path)[0] for backend in ("fake", "integer")
        )
        assert_close(integer, fake)
        images[name] = integer
    for one, other in (("none", "mean"), ("mean", "both")):
        assert float((images[one] - images[other]).abs().float().mean()) > MEAN, "a correction moves images farther"


@pytest.mark.parametrize(
    ("quantizer", "reason"),
    [
        ({}, r"activation scales per channel do not factor out .* {'4': multiples, '8': per_tensor}"),
        (PER_TENSOR | {"weight_group": 4}, "groups of its inputs have weight scales of their own"),
        (PER_TENSOR | {"split_shortcuts": True}, "its input is split into two parts of scales of their own"),
    ],
)
def test_what_integers_cannot_compute_is_refused(
    quantizer: dict[str, Any], reason: str, make_quantized: Callable[..., QuantizedNetwork]
) -> None:
    with pytest.raises(ValueError, match=rf"^[a-z_0-9.]+: no integer kernel computes it, nor \d+ of .*: {reason}"):
        IntegerNetwork(make_quantized("w4a4", **quantizer), [750, 500, 250, 0])


def test_what_a_machine_cannot_compute_fast_is_exact_and_said(
    denoiser: Denoiser,
    settings: DatasetSettings,
    make_quantized: Callable[..., QuantizedNetwork],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(cpu, "lacking", lambda _device: None)
    monkeypatch.setattr(cpu, "refuses", lambda integers: "too many rows" if len(integers.weight) > 8 else None)
    checkpoint = Checkpoint(make_quantized("w8a8"), "nearest", settings.sampler)
    with caplog.at_level(logging.WARNING), backends.get("integer").ready(checkpoint, denoiser) as ready:
        used = ready.notes["kernels"]
    assert set(used) == {"cpu", "reference"}
    assert f"{used['reference']} of {sum(used.values())} layers are multiplied in float64" in caplog.text
    assert "too many rows" in caplog.text
