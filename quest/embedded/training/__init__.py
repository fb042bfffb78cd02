"""Training of the embedded full-precision models and their feature extractors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quest import artifacts
from quest.config.dataset import DatasetSettings
from quest.config.pretraining import PretrainSettings
from quest.embedded import images as embedded


def start(settings: DatasetSettings, output: Path, device: torch.device, allow_cpu: bool) -> PretrainSettings:
    """How the dataset's model is trained. Raises ValueError where it is not, or where that would take hours unasked."""
    if settings.pretrain is None or settings.real_images is None:
        raise ValueError(
            "pretrain: this dataset is not an embedded one; its model is brought by the user, not trained here"
        )
    if device.type == "cpu" and not allow_cpu:
        raise ValueError(
            f"{output} is missing and this machine has no GPU to train it on. The trained model is shared: "
            f"`dvc pull {output.parent}` fetches it. To train it here all the same (hours): --allow-cpu"
        )
    return settings.pretrain


def images(settings: DatasetSettings, pretrain: PretrainSettings, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pictures (n, C, H, W) uint8 to train on, and their labels."""
    assert settings.real_images is not None  # `start` has seen it
    stream = f"pretrain/{pretrain.seed}"
    return embedded.labelled_images(settings.real_images, settings.image_size, pretrain.images, stream, device)


def is_text(settings: DatasetSettings) -> bool:
    """Whether images are drawn for prompts."""
    return settings.condition is not None and settings.condition.prompts is not None


def manifest(pretrain: PretrainSettings, inputs: dict[str, str] | None = None, /, **notes: Any) -> artifacts.Manifest:
    """How the model was trained, for its artifact."""
    return artifacts.Manifest(
        "", settings=artifacts.plain(pretrain), seeds={"pretrain": pretrain.seed}, inputs=inputs or {}, notes=notes
    )
