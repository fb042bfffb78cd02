"""Train the full-precision denoiser of DATASET on another model's first stage."""

from __future__ import annotations

from pathlib import Path

import torch

from quest.config.dataset import DatasetSettings
from quest.diffusion import denoiser as denoisers
from quest.diffusion.denoiser import Denoiser
from quest.embedded import training
from quest.embedded.training import denoiser
from quest.embedded.training.autoencoder import encoded
from quest.quantization.account import account
from quest.stages import ALLOW_CPU, DEVICE, MODEL, PROTOCOL, file

SECTIONS = ("real_images", "condition", "pretrain")
PARAMETERS = (
    *PROTOCOL,
    MODEL,
    file("first-stage", "Model artifact whose first stage is used as it is."),
    DEVICE,
    ALLOW_CPU,
)


def run(
    dataset: str, settings: DatasetSettings, model: Path, first_stage: Path, device: torch.device, allow_cpu: bool
) -> None:
    """Train a denoiser on the latents of the model artifact ``first_stage`` and write a model artifact.

    Nothing else is trained: metrics are those of the dataset whose extractor the protocol names.
    """
    pretrain = training.start(settings, model, device, allow_cpu)
    if pretrain.first_stage is None:
        raise ValueError("pretrain.first_stage: missing, so the first stage is trained too; expected `quest pretrain`")
    if training.is_text(settings):
        raise ValueError("condition: found prompts; a denoiser that is trained on its own has classes, or no condition")
    shared = denoisers.load(first_stage, device)
    if shared.first_stage is None:
        raise ValueError(f"--first-stage: {first_stage} is a model of pixels; expected one with a first stage")
    images, labels = training.images(settings, pretrain, device)
    torch.manual_seed(pretrain.seed)
    latents = encoded(shared.first_stage, images.to(device))
    trained = denoiser.train_denoiser(latents, pretrain, device, denoiser.of_classes(settings, labels, device))
    result = Denoiser(trained.network, trained.scheduler, shared.first_stage, trained.embedder)
    notes = {"loss": trained.losses[-1], "losses": trained.losses, "account": account(result.network, result.example())}
    manifest = training.manifest(pretrain, {"first_stage": shared.sha256}, **notes)
    denoisers.save(model, result, manifest, torch.float16)
