"""A narrow extractor, so that a covariance needs few images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from quest.artifacts import Manifest
from quest.metrics.extractor import Classifier, save_extractor


@pytest.fixture(scope="session")
def narrow_extractor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An extractor artifact of 8 pooled features of colour images, untrained."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("extractor") / "narrow.safetensors"
    save_extractor(path, Classifier(3, 10, width=8), "narrow", Manifest(kind="extractor"))
    return path
