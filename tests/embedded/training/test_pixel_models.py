"""Training of embedded pixel-space models and extractors, in a few steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quest.artifacts import load_tensors
from quest.config.dataset import DatasetSettings
from quest.config.pretraining import PretrainSettings
from quest.diffusion import denoiser as denoisers
from quest.embedded.images import labelled_images
from quest.embedded.training.classifier import train_classifier
from quest.embedded.training.denoiser import build_unet, noise_level_weights, train_denoiser
from quest.metrics.extractor import load_extractor
from quest.stages import pretrain as pretraining

CPU = torch.device("cpu")
PRETRAIN: dict[str, Any] = {
    "unet": {"channels": [8, 16], "layers_per_block": 1, "attention": [False, True]},
    "steps": 30,
    "batch_size": 16,
    "lr": 2e-3,
    "classifier_steps": 30,
}


@pytest.fixture(scope="module")
def embedded(make_settings: Callable[..., DatasetSettings]) -> DatasetSettings:
    return make_settings(real_images="digits", pretrain=PRETRAIN)


@pytest.fixture(scope="module")
def pretrain(embedded: DatasetSettings) -> PretrainSettings:
    assert embedded.pretrain is not None
    return embedded.pretrain


def test_architecture(pretrain: PretrainSettings) -> None:
    assert pretrain.unet is not None
    network = build_unet(pretrain.unet, 1, 8)
    assert network.config["down_block_types"] == ("DownBlock2D", "AttnDownBlock2D")
    assert network.config["up_block_types"] == ("AttnUpBlock2D", "UpBlock2D")
    assert network(torch.zeros(2, 1, 8, 8), torch.zeros(2)).sample.shape == (2, 1, 8, 8)


def test_denoiser_learns(pretrain: PretrainSettings) -> None:
    torch.manual_seed(0)
    images, _ = labelled_images("digits", 8)
    assert pretrain.unet is not None
    untrained = build_unet(pretrain.unet, 1, 8).eval()
    network, scheduler, _, losses = train_denoiser(images.float() / 127.5 - 1, pretrain, CPU)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert 0 < losses[-1] < 1
    assert scheduler.config["clip_sample"] is False
    clean, noise = images[:64].float() / 127.5 - 1, torch.randn(64, 1, 8, 8)
    t = torch.full((64,), 600)
    noisy = scheduler.add_noise(clean, noise, t)  # type: ignore[arg-type]
    with torch.no_grad():
        before, after = ((each(noisy, t).sample - noise).square().mean() for each in (untrained, network))
    assert after < 0.9 * before
    assert after < 1


def test_classifier_learns(pretrain: PretrainSettings) -> None:
    torch.manual_seed(0)
    images, labels = labelled_images("digits", 8)
    longer = pretrain.model_copy(update={"classifier_steps": 60})
    classifier, accuracy = train_classifier(images, labels, longer, CPU)
    assert not classifier.training
    held_out = torch.arange(len(images)) % 6 == 5
    with torch.no_grad():
        predicted = classifier(images[held_out].float() / 127.5 - 1).argmax(1)
    assert accuracy == pytest.approx((predicted == labels[held_out]).float().mean().item())
    assert accuracy > 0.2, "ten classes by chance are 0.1"


def test_stage_writes_both_artifacts(embedded: DatasetSettings, pretrain: PretrainSettings, tmp_path: Path) -> None:
    short = pretrain.model_copy(update={"steps": 2, "classifier_steps": 2})
    settings = embedded.model_copy(update={"pretrain": short})
    model, extractor = tmp_path / "model.safetensors", tmp_path / "extractor.safetensors"
    pretraining.run("tiny", settings, model, extractor, CPU, allow_cpu=True, clip=None)
    denoiser = denoisers.load(model)
    assert denoiser.shape == (1, 8, 8)
    assert denoiser.scheduler.config["steps_offset"] == 1
    account = load_tensors(model, "model").manifest.notes["account"]
    parameters = sum(parameter.numel() for parameter in denoiser.network.parameters())
    assert account["weight_mib"] == pytest.approx(parameters * 4 / 2**20), "the row of full precision has its size"
    assert account["mean_weight_bits"] == 32
    assert load_extractor(extractor).name == "digits-classifier"
    again = tmp_path / "again.safetensors"
    pretraining.run("tiny", settings, again, tmp_path / "extractor-again.safetensors", CPU, allow_cpu=True, clip=None)
    assert again.read_bytes() == model.read_bytes(), "the same for a seed"


def test_not_without_a_gpu_unless_asked(embedded: DatasetSettings, tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match=r"no GPU to train it on.*dvc pull .*--allow-cpu"):
        pretraining.run("tiny", embedded, model, tmp_path / "extractor.safetensors", CPU, allow_cpu=False, clip=None)
    assert not model.exists()


def test_model_that_is_brought_by_the_user(settings: DatasetSettings, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not an embedded one"):
        pretraining.run("tiny", settings, tmp_path / "m", tmp_path / "e", CPU, allow_cpu=True, clip=None)


def test_little_noise_counts_less_where_the_signal_to_noise_ratio_is_capped():
    ratios = torch.tensor([100.0, 5.0, 0.5])
    alphas = ratios / (1 + ratios)
    torch.testing.assert_close(noise_level_weights(alphas, 5.0), torch.tensor([0.05, 1.0, 1.0]))
    torch.testing.assert_close(noise_level_weights(alphas, None), torch.ones(3))
