"""A network of digits' kind that is small enough for tests."""

from __future__ import annotations

import pytest
import torch

from quest.config.dataset import DatasetSettings, load_dataset
from quest.embedded.training.denoiser import build_unet
from quest.estimate.networks import Model


@pytest.fixture(scope="session")
def settings() -> DatasetSettings:
    """digits-quick on images of 8×8, without files."""
    content = load_dataset("digits-quick").model_dump(mode="json")
    content |= {"image_size": 8, "model": "none.safetensors", "extractor": "none.safetensors"}
    content["pretrain"] = {"unet": {"channels": [8, 16], "attention": [False, True]}, "steps": 1}
    return DatasetSettings.model_validate(content)


@pytest.fixture
def tiny(settings: DatasetSettings) -> Model:
    assert settings.pretrain is not None
    assert settings.pretrain.unet is not None
    torch.manual_seed(0)
    return Model(build_unet(settings.pretrain.unet, 1, 8))
