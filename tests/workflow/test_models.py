"""Which models stay as they were trained although their settings changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from quest import artifacts
from quest.config.dataset import DatasetSettings
from quest.config.reading import validate
from workflow.models import not_retrained

PROTOCOL = {
    "title": "digits",
    "model": "model.safetensors",
    "extractor": "extractor.safetensors",
    "real_images": "digits",
    "image_size": 16,
    "image_channels": 1,
    "pretrain": {"unet": {"channels": [32], "attention": [False]}, "steps": 4000},
}


def settings(**pretrain: object) -> DatasetSettings:
    return validate(DatasetSettings, PROTOCOL | {"pretrain": PROTOCOL["pretrain"] | pretrain}, "tests")


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A folder with a model whose manifest says how it was trained, but for a key that came later."""
    said = artifacts.plain(settings().pretrain)
    del said["snr_cap"]
    manifest = artifacts.Manifest("model", settings=said)
    artifacts.save_tensors(tmp_path / "model.safetensors", {"x": torch.zeros(1)}, manifest)
    return tmp_path


def test_the_same_settings_say_nothing(trained: Path) -> None:
    assert list(not_retrained({"digits": settings()}, trained)) == []


def test_a_changed_setting_is_named_with_what_to_do(trained: Path) -> None:
    changed = settings(steps=5000, unet={"channels": [64], "attention": [False]})
    (sentence,) = not_retrained({"digits": changed}, trained)
    assert sentence.startswith(
        "pretrain.unet.channels, pretrain.steps of digits changed, but model.safetensors is there"
    )
    assert "`snakemake --forcerun pretrain -- model.safetensors` trains it again" in sentence


def test_a_model_that_is_not_there_or_not_readable_is_not_spoken_of(tmp_path: Path) -> None:
    assert list(not_retrained({"digits": settings(steps=5000)}, tmp_path)) == []
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    assert list(not_retrained({"digits": settings(steps=5000)}, tmp_path)) == []
