"""Low-bit checkpoints: the same outputs after a file, as small as promised, and files that do not belong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from quest.artifacts import ArtifactError, load_tensors, save_tensors
from quest.config.dataset import DatasetSettings
from quest.config.values import Bits
from quest.deploy import checkpoints
from quest.diffusion import denoiser as denoisers
from quest.diffusion.correction import Correction
from quest.diffusion.denoiser import Denoiser
from quest.learning.calibration import Calibration
from quest.quantization.network import QuantizedNetwork

Make = Callable[..., QuantizedNetwork]


def save(path: Path, network: QuantizedNetwork, denoiser: Denoiser) -> None:
    checkpoints.save(path, network, "nearest", {"method": {}}, 7, {"model": denoiser.sha256}, {"extra": 1})


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
def test_outputs_are_the_same_after_a_file(
    make_quantized: Make,
    denoiser: Denoiser,
    calibration: Calibration,
    settings: DatasetSettings,
    tmp_path: Path,
    bits: str,
) -> None:
    network = make_quantized(bits, weight_search="mse")
    path = tmp_path / "checkpoint.safetensors"
    save(path, network, denoiser)
    loaded = checkpoints.load(path, denoiser, settings)
    assert loaded.method == "nearest"
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
    make_quantized: Make, denoiser: Denoiser, other_model_file: Path, settings: DatasetSettings, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save(path, make_quantized(), denoiser)
    with pytest.raises(ValueError, match=r"quantized from model .*, but the model given is"):
        checkpoints.load(path, denoisers.load(other_model_file), settings)


def test_checkpoint_for_another_sampler(
    make_quantized: Make, denoiser: Denoiser, make_settings: Callable[..., DatasetSettings], tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save(path, make_quantized(), denoiser)
    with pytest.raises(ValueError, match=r"quantized for 4 sampling steps, but sampler.steps is 8"):
        checkpoints.load(path, denoiser, make_settings(sampler={"steps": 8}))


def test_file_of_another_kind(model_file: Path, denoiser: Denoiser, settings: DatasetSettings) -> None:
    with pytest.raises(ArtifactError, match="kind 'model' where 'checkpoint' is expected"):
        checkpoints.load(model_file, denoiser, settings)


def test_uncalibrated_network_is_not_saved(make_quantized: Make, denoiser: Denoiser, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(ValueError, match="never calibrated"):
        save(path, make_quantized(calibrated=False), denoiser)
    assert not path.exists()


def test_correction_of_the_sampler_travels(
    make_quantized: Make, denoiser: Denoiser, settings: DatasetSettings, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    correction = Correction(torch.rand(4), torch.rand(4, 1), torch.rand(4), "original")
    inputs = {"model": denoiser.sha256}
    checkpoints.save(path, make_quantized(), "ptqd", {}, 0, inputs, {}, correction)
    loaded = checkpoints.load(path, denoiser, settings).correction
    assert loaded is not None
    assert loaded.direction == "original"
    for name in ("slope", "bias", "deviation"):
        assert torch.equal(getattr(loaded, name), getattr(correction, name))


@pytest.mark.parametrize("name", ["sampler.slop", "conv_in.slope"])
def test_strange_tensor(
    make_quantized: Make, denoiser: Denoiser, settings: DatasetSettings, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    correction = Correction(torch.rand(4), torch.rand(4, 1), torch.rand(4))
    checkpoints.save(path, make_quantized(), "ptqd", {}, 0, {"model": denoiser.sha256}, {}, correction)
    artifact = load_tensors(path, "checkpoint")
    save_tensors(path, artifact.tensors | {name: torch.zeros(4)}, artifact.manifest)
    with pytest.raises(ValueError, match=f"{name}: not part of"):
        checkpoints.load(path, denoiser, settings)
