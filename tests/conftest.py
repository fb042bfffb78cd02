"""A tiny model and protocol that the library's tests share: every stage on them takes a second or less."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from quest.artifacts import Manifest
from quest.config.dataset import DatasetSettings
from quest.config.reading import merged, validate
from quest.config.values import Bits
from quest.deploy.start import recipe as make_recipe
from quest.diffusion import denoiser as denoisers
from quest.diffusion.denoiser import Denoiser
from quest.learning import calibration as calibrations
from quest.learning.calibration import Calibration
from quest.learning.finetuning import calibrate_activations
from quest.quantization.network import QuantizedNetwork
from quest.stages import calibrate


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs a GPU is left out where there is none."""
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

SETTINGS: dict[str, Any] = {
    "title": "tiny",
    "model": "model.safetensors",
    "extractor": "extractor.safetensors",
    "image_size": 8,
    "image_channels": 1,
    "sampler": {"steps": 4, "eta": 0.0},
    "calibration": {"steps": 4, "samples_per_step": 8},
    "quantizer": {"weight_search": "max"},
    "reconstruction": {"iterations": 8, "batch_size": 4, "lr": 1e-2, "samples": 16},
    "methods": {
        "nearest": {"sets": 2},
        "q_diffusion": {"iterations": 4, "batch_size": 4, "lr": 1e-2, "samples": 16},
        "ptqd": {"iterations": 2, "batch_size": 4, "lr": 1e-2, "samples": 16, "trajectories": 8, "held_out": 4},
        "quest": {
            "sets": 2,
            "tla_epochs": 2,
            "tla_samples": 2,
            "tla_batch_size": 2,
            "cma_epochs": 2,
            "cma_samples": 4,
            "cma_batch_size": 4,
        },
        "efficientdm": {"sets": 4, "trajectories": 2, "rank": 4},
        "tfmq_dm": {"sets": 4, "batch_size": 4},
        "traq": {"sets": 4, "passes": 24, "batch_size": 4, "draws": 2, "trajectories": 4},
    },
    "evaluation": {"images": 6, "shards": 2, "batch_size": 4},
}


@pytest.fixture(scope="session")
def make_settings() -> Callable[..., DatasetSettings]:
    """The tiny protocol, some of its keys changed."""

    def make(**changes: Any) -> DatasetSettings:
        return validate(DatasetSettings, merged(SETTINGS, changes), "tests")

    return make


@pytest.fixture(scope="session")
def settings(make_settings: Callable[..., DatasetSettings]) -> DatasetSettings:
    """The tiny protocol."""
    return make_settings()


@pytest.fixture(scope="session")
def make_unet() -> Callable[..., UNet2DModel]:
    """An untrained 8×8 UNet2DModel with attention at its lower resolution; the same weights for the same arguments."""

    def make(**changes: Any) -> UNet2DModel:
        torch.manual_seed(0)
        config: dict[str, Any] = {
            "sample_size": 8,
            "in_channels": 1,
            "out_channels": 1,
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": 8,
            "norm_num_groups": 4,
        }
        return UNet2DModel(**(config | changes)).eval().requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory, make_unet: Callable[..., UNet2DModel]) -> Path:
    """A model artifact with the tiny UNet."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False, steps_offset=1)
    denoisers.save(path, Denoiser(make_unet(dropout=0.5), scheduler), Manifest(kind="model"), torch.float16)
    return path


@pytest.fixture(scope="session")
def other_model_file(tmp_path_factory: pytest.TempPathFactory, make_unet: Callable[..., UNet2DModel]) -> Path:
    """A model artifact of the same architecture with other weights."""
    path = tmp_path_factory.mktemp("other") / "model.safetensors"
    network = make_unet(dropout=0.5)
    network.conv_in.weight.data.mul_(2)
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False)
    denoisers.save(path, Denoiser(network, scheduler), Manifest(kind="model"), torch.float16)
    return path


@pytest.fixture
def denoiser(model_file: Path) -> Denoiser:
    """The tiny model, freshly loaded."""
    return denoisers.load(model_file)


@pytest.fixture(scope="session")
def calibration_file(tmp_path_factory: pytest.TempPathFactory, model_file: Path, settings: DatasetSettings) -> Path:
    """Calibration data of the tiny model."""
    path = tmp_path_factory.mktemp("calibration") / "calibration.safetensors"
    calibrate.run("tiny", settings, model_file, 0, path, torch.device("cpu"))
    return path


@pytest.fixture
def calibration(calibration_file: Path, denoiser: Denoiser, settings: DatasetSettings) -> Calibration:
    """Calibration data of the tiny model, loaded."""
    return calibrations.load(calibration_file, denoiser, settings)


@pytest.fixture(scope="session")
def make_quantized(
    model_file: Path, calibration_file: Path, make_settings: Callable[..., DatasetSettings]
) -> Callable[..., QuantizedNetwork]:
    """The tiny model quantized to nearest, activations calibrated unless told otherwise; ``quantizer`` changes keys."""

    made: dict[str, QuantizedNetwork] = {}

    def make(bits: str = "w4a4", calibrated: bool = True, sets: int = 2, **quantizer: Any) -> QuantizedNetwork:
        key = repr((bits, calibrated, sets, quantizer))
        if key not in made:
            made[key] = build(bits, calibrated, sets, quantizer)
        return copy.deepcopy(made[key])

    def build(bits: str, calibrated: bool, sets: int, quantizer: dict[str, Any]) -> QuantizedNetwork:
        settings = make_settings(quantizer=quantizer)
        denoiser = denoisers.load(model_file)
        recipe = make_recipe(settings, Bits.parse(bits), sets)
        network = QuantizedNetwork(denoiser.network, recipe, denoiser.example())
        if calibrated:
            calibrate_activations(network, calibrations.load(calibration_file, denoiser, settings))
        return network

    return make


@pytest.fixture(scope="session")
def published_unet() -> Callable[[str], Any]:
    """The architecture of a published model, by name, without weights (on the meta device)."""

    def build(name: str) -> Any:
        with torch.device("meta"):
            if name == "stable-diffusion-v1.4":
                return UNet2DConditionModel(cross_attention_dim=768)
            assert name == "ddpm-cifar10"
            return UNet2DModel(
                sample_size=32,
                block_out_channels=(128, 256, 256, 256),
                layers_per_block=2,
                down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            )

    return build
