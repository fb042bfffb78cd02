"""Train the CLIP model of an embedded DATASET of prompts: its text encoder, and its CLIP score."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from quest.config.dataset import DatasetSettings
from quest.embedded import clip as clips
from quest.embedded import images as embedded
from quest.embedded import training
from quest.embedded.training.clip import train_clip
from quest.stages import ALLOW_CPU, DEVICE, OUTPUT, PROTOCOL

log = logging.getLogger(__name__)
SECTIONS = ("real_images", "pretrain")
PARAMETERS = (*PROTOCOL, OUTPUT, DEVICE, ALLOW_CPU)


def run(dataset: str, settings: DatasetSettings, output: Path, device: torch.device, allow_cpu: bool) -> None:
    """Train the CLIP model of a text-conditional embedded dataset and write its artifact."""
    pretrain = training.start(settings, output, device, allow_cpu)
    if pretrain.clip is None:
        raise ValueError("pretrain.clip: missing, so there is no CLIP model to train; datasets of prompts have one")
    images, labels = training.images(settings, pretrain, device)
    torch.manual_seed(pretrain.seed)
    model, accuracy = train_clip(images, labels, embedded.captions(settings.real_images), pretrain.clip, device)
    log.info("CLIP finds the caption of held-out images: %.4f", accuracy)
    clips.save(output, model, training.manifest(pretrain, accuracy=accuracy))
