"""Train the embedded full-precision model and the feature extractor of DATASET."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from quest.config.dataset import DatasetSettings
from quest.diffusion import denoiser as denoisers
from quest.diffusion.conditioners import Conditioner
from quest.diffusion.denoiser import Denoiser
from quest.embedded import clip as clips
from quest.embedded import images as embedded
from quest.embedded import training
from quest.embedded.training import denoiser
from quest.embedded.training.autoencoder import train_autoencoder
from quest.embedded.training.classifier import train_classifier
from quest.metrics.extractor import save_extractor
from quest.quantization.account import account
from quest.stages import ALLOW_CPU, DEVICE, MODEL, PROTOCOL, file

log = logging.getLogger(__name__)
SECTIONS = ("real_images", "condition", "pretrain")
PARAMETERS = (
    *PROTOCOL,
    MODEL,
    file("extractor"),
    file("clip", "CLIP artifact whose text encoder conditions a model of prompts.", required=False),
    DEVICE,
    ALLOW_CPU,
)


def run(
    dataset: str,
    settings: DatasetSettings,
    model: Path,
    extractor: Path,
    device: torch.device,
    allow_cpu: bool,
    clip: Path | None,
) -> None:
    """Train the extractor, the first stage of a latent model and the denoiser; write an extractor and a model artifact.

    clip: what `quest pretrain-clip` wrote, whose text encoder conditions a model of prompts.
    """
    pretrain = training.start(settings, model, device, allow_cpu)
    if (clip is not None) != training.is_text(settings):
        raise ValueError(
            "--clip: a model of prompts is conditioned by a CLIP artifact (`quest pretrain-clip`), any other by none"
        )
    if pretrain.first_stage is not None:
        raise ValueError(
            "pretrain.first_stage: set, so only the denoiser is trained; expected `quest pretrain-denoiser`"
        )
    text = None if clip is None else clips.load(clip, device)
    images, labels = training.images(settings, pretrain, device)
    torch.manual_seed(pretrain.seed)
    classifier, accuracy = train_classifier(images, labels, pretrain, device)
    log.info("classifier accuracy on held-out images: %.4f", accuracy)
    name = f"{settings.real_images}-classifier"
    save_extractor(extractor, classifier, name, training.manifest(pretrain, accuracy=accuracy))

    if pretrain.autoencoder is None:
        stage, clean, quality = None, images.float() / 127.5 - 1, {}
    else:
        stage, clean, quality = train_autoencoder(images, pretrain.autoencoder, device)
        log.info("first stage: %s", quality)
    conditioner = None
    if text is not None:
        conditioner = text.text_encoder()
        with torch.no_grad():
            contexts = conditioner(embedded.captions(settings.real_images)), conditioner([None])
        conditions = denoiser.of_contexts(labels, *contexts)
    else:
        conditions = denoiser.of_classes(settings, labels, device)
    trained = denoiser.train_denoiser(clean, pretrain, device, conditions)
    context: Conditioner | None = conditioner if trained.embedder is None else trained.embedder
    result = Denoiser(trained.network, trained.scheduler, stage, context)
    # The account stands with the model, so that the row of full precision has its size and cost beside the others'.
    notes = {
        "loss": trained.losses[-1],
        "losses": trained.losses,
        "account": account(trained.network, result.example()),
    }
    notes |= {f"first_stage_{name}": value for name, value in quality.items()}
    inputs = {} if text is None else {"clip": text.sha256}
    denoisers.save(model, result, training.manifest(pretrain, inputs, **notes), torch.float16)
