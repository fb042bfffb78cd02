"""Low-bit checkpoints: the same outputs after a file, as small as promised, and files that do not belong."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from quest.artifacts import ArtifactError, load_tensors, save_tensors
from quest.config.sampling import SamplerSettings
from quest.config.values import Bits
from quest.deploy import checkpoints
from quest.deploy.checkpoints import Checkpoint
from quest.diffusion import denoiser as denoisers
from quest.diffusion.correction import Correction
from quest.diffusion.denoiser import Denoiser
from quest.learning.calibration import Calibration
from quest.quantization.network import QuantizedNetwork

Make = Callable[..., QuantizedNetwork]


SAMPLER = SamplerSettings(steps=4, eta=0.5)


def made(network: QuantizedNetwork, denoiser: Denoiser, **changes: Any) -> Checkpoint:
    checkpoint = Checkpoint(network, "nearest", SAMPLER, settings={"method": {}}, seed=7, notes={"extra": 1})
    return replace(checkpoint, inputs={"model": denoiser.sha256}, **changes)


def save(path: Path, network: QuantizedNetwork, denoiser: Denoiser, **changes: Any) -> None:
    checkpoints.save(path, made(network, denoiser, **changes))


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
def test_outputs_are_the_same_after_a_file(
    make_quantized: Make,
    denoiser: Denoiser,
    calibration: Calibration,
    tmp_path: Path,
    bits: str,
) -> None:
    network = make_quantized(bits, weight_search="mse")
    path = tmp_path / "checkpoint.safetensors"
    save(path, network, denoiser)
    loaded = checkpoints.load(path, denoiser)
    assert loaded.method == "nearest"
    assert loaded.sampler == SAMPLER
    assert loaded.network.recipe == network.recipe
    samples = calibration.samples(2)
    with torch.no_grad():
        for step in range(4):
            outputs = []
            for each in (network, loaded.network):
                each.set_step(step)
                outputs.append(each(samples.x, samples.timesteps).sample)
            assert torch.equal(*outputs)

    manifest = load_tensors(path, "checkpoint").manifest
    assert loaded.sha256 == manifest.sha256
    assert manifest.seeds == {"run": 7}
    assert manifest.notes["extra"] == 1
    assert manifest.notes["account"]["mean_weight_bits"] == Bits.parse(bits).weight

    again = tmp_path / "again.safetensors"
    checkpoints.save(again, loaded)
    assert again.read_bytes() == path.read_bytes(), "nothing is lost on the way"


def test_four_bits_take_half_a_byte(make_quantized: Make, denoiser: Denoiser, tmp_path: Path) -> None:
    network = make_quantized("w4a8")
    path = tmp_path / "checkpoint.safetensors"
    save(path, network, denoiser)
    tensors = load_tensors(path, "checkpoint").tensors
    stored = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    weights = sum(layer.weight.numel() for layer in network.layers().values())
    codes = sum(tensor.numel() for name, tensor in tensors.items() if name.endswith(".codes"))
    assert codes == weights / 2
    assert stored == pytest.approx(network.account()["weight_mib"] * 2**20, rel=0.01)


def test_checkpoint_of_another_model(
    make_quantized: Make, denoiser: Denoiser, other_model_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save(path, make_quantized(), denoiser)
    with pytest.raises(ValueError, match=r"quantized from model .*, but the model given is"):
        checkpoints.load(path, denoisers.load(other_model_file))


def test_checkpoint_for_another_sampler(make_quantized: Make, denoiser: Denoiser) -> None:
    checkpoint, path = made(make_quantized(), denoiser), Path("w4a4.safetensors")
    checkpoints.require_sampler(path, checkpoint, SamplerSettings(steps=4, eta=0.5))
    message = (
        "w4a4.safetensors: quantized for a sampler with steps 4, eta 0.5, but the protocol's has steps 8, eta 0.0; "
        "finetune again"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        checkpoints.require_sampler(path, checkpoint, SamplerSettings(steps=8))


def test_checkpoint_that_does_not_say_its_sampler(make_quantized: Make, denoiser: Denoiser, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save(path, make_quantized(), denoiser)
    artifact = load_tensors(path, "checkpoint")
    save_tensors(path, artifact.tensors, replace(artifact.manifest, settings={"method": {}}))
    with pytest.raises(ArtifactError, match="made before checkpoints said which sampler they are for; make it again"):
        checkpoints.load(path, denoiser)


def test_file_of_another_kind(model_file: Path, denoiser: Denoiser) -> None:
    with pytest.raises(ArtifactError, match="kind 'model' where 'checkpoint' is expected"):
        checkpoints.load(model_file, denoiser)


def test_uncalibrated_network_is_not_saved(make_quantized: Make, denoiser: Denoiser, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(ValueError, match="never calibrated"):
        save(path, make_quantized(calibrated=False), denoiser)
    assert not path.exists()


def test_correction_of_the_sampler_travels(make_quantized: Make, denoiser: Denoiser, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    correction = Correction(torch.rand(4), torch.rand(4, 1), torch.rand(4), "original")
    save(path, make_quantized(), denoiser, correction=correction)
    loaded = checkpoints.load(path, denoiser).correction
    assert loaded is not None
    assert loaded.direction == "original"
    for name in ("slope", "bias", "deviation"):
        assert torch.equal(getattr(loaded, name), getattr(correction, name))


def test_a_correction_whose_tables_are_one_tensor_is_written(
    make_quantized: Make, denoiser: Denoiser, tmp_path: Path
) -> None:
    path, zeros = tmp_path / "checkpoint.safetensors", torch.zeros(4)
    save(path, make_quantized(), denoiser, correction=Correction(zeros, torch.rand(4, 1), zeros))
    loaded = checkpoints.load(path, denoiser).correction
    assert loaded is not None
    assert torch.equal(loaded.slope, zeros)
    assert torch.equal(loaded.deviation, zeros)


@pytest.mark.parametrize("name", ["sampler.slop", "conv_in.slope"])
def test_strange_tensor(make_quantized: Make, denoiser: Denoiser, tmp_path: Path, name: str) -> None:
    path = tmp_path / "checkpoint.safetensors"
    correction = Correction(torch.rand(4), torch.rand(4, 1), torch.rand(4))
    save(path, make_quantized(), denoiser, correction=correction)
    artifact = load_tensors(path, "checkpoint")
    save_tensors(path, artifact.tensors | {name: torch.zeros(4)}, artifact.manifest)
    with pytest.raises(ValueError, match=f"{name}: not part of"):
        checkpoints.load(path, denoiser)
