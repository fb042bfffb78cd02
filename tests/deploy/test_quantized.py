"""Quantized models: images by the rule of the stage, files that go together, and what is said when they do not."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import quest
from quest.artifacts import ArtifactError, Manifest, load_tensors
from quest.config.dataset import DatasetSettings
from quest.deploy.checkpoints import Checkpoint
from quest.deploy.quantized import QuantizedModel
from quest.diffusion import denoiser as denoisers
from quest.diffusion import sampling
from quest.diffusion.denoiser import Denoiser
from quest.quantization.network import QuantizedNetwork


@pytest.fixture
def quantized(
    denoiser: Denoiser, make_quantized: Callable[..., QuantizedNetwork], settings: DatasetSettings
) -> QuantizedModel:
    """The tiny model at W4A4, of an artifact."""
    checkpoint = Checkpoint(make_quantized(), "nearest", settings.sampler, inputs={"model": denoiser.sha256})
    return QuantizedModel(checkpoint, denoiser)


def test_image_i_is_the_same_whatever_is_drawn_with_it(quantized: QuantizedModel, settings: DatasetSettings) -> None:
    images = quantized.sample(4, seed=7)
    assert images.dtype == torch.uint8
    assert images.shape == (4, 1, 8, 8)
    network, model = quantized.network, quantized.around
    assert torch.equal(images, sampling.draw(model, network, settings, 7, range(4), torch.device("cpu")))
    one_by_one = quantized.sample(3, seed=7, batch_size=1)
    assert bool(((one_by_one.int() - images[:3].int()).abs() <= 1).all()), "up to the rounding of sums"
    assert not torch.equal(images, quantized.sample(4, seed=8))


@pytest.mark.parametrize("images", [0, -1, []])
def test_no_images(quantized: QuantizedModel, images: int | list[int]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"images: found {images}; expected at least one")):
        quantized.sample(images)


def test_classes_of_a_model_without_any(quantized: QuantizedModel) -> None:
    with pytest.raises(
        ValueError, match=re.escape("images: found [1]; the model is unconditional, so expected how many")
    ):
        quantized.sample([1])


def test_a_model_of_an_artifact_is_not_written_again(
    quantized: QuantizedModel, model_file: Path, other_model_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "w4a4.safetensors"
    quest.save(quantized, path)
    assert [file.name for file in tmp_path.iterdir()] == ["w4a4.safetensors"]
    images = quantized.sample(3, seed=1)
    assert torch.equal(quest.load(path, model=model_file, device="cpu").sample(3, seed=1), images)
    sha256 = load_tensors(model_file, "model").manifest.sha256
    message = f"model with sha256 {sha256}, which is not beside it as w4a4.model.safetensors; say where its artifact is"
    with pytest.raises(ArtifactError, match=message):
        quest.load(path)
    with pytest.raises(ValueError, match=r"quantized from model .*, but the model given is"):
        quest.load(path, model=other_model_file)
    with pytest.raises(ArtifactError, match=r"w4a4.safetensors: an artifact of kind 'checkpoint' where 'model'"):
        quest.load(path, model=path)


def test_a_model_of_no_artifact_is_written_beside(
    quantized: QuantizedModel, denoiser: Denoiser, model_file: Path, other_model_file: Path, tmp_path: Path
) -> None:
    original = replace(denoisers.load(model_file), sha256="")
    own = replace(quantized, original=original, checkpoint=replace(quantized.checkpoint, inputs={"model": ""}))
    path = tmp_path / "w4a4.safetensors"
    quest.save(own, path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["w4a4.model.safetensors", "w4a4.safetensors"]
    assert torch.equal(quest.load(path, device="cpu").sample(3, seed=1), quantized.sample(3, seed=1))
    denoisers.save(tmp_path / "w4a4.model.safetensors", denoisers.load(other_model_file), Manifest(kind="model"))
    with pytest.raises(ValueError, match=r"quantized from model .*, but the model given is"):
        quest.load(path)
