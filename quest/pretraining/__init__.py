"""Training of the embedded full-precision models and their feature extractors (the `pretrain` rules)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quest import artifacts
from quest.config import DatasetSettings, PretrainSettings
from quest.device import resolve
from quest.metrics.extractor import save_extractor
from quest.models import clip as clips
from quest.models import denoiser as denoisers
from quest.models import embedded
from quest.models.conditioners import Conditioner
from quest.models.denoiser import Denoiser
from quest.pretraining import denoiser
from quest.pretraining.autoencoder import train_autoencoder
from quest.pretraining.classifier import train_classifier
from quest.pretraining.clip import train_clip
from quest.quantization.account import account

log = logging.getLogger(__name__)


def run(
    settings: DatasetSettings, model: Path, extractor: Path, device: str, allow_cpu: bool, clip: Path | None = None
) -> None:
    """Train the extractor, the first stage of a latent model and the denoiser; write an extractor and a model artifact.

    clip: what `run_clip` wrote, whose text encoder conditions a model of prompts.
    """
    pretrain, where = _start(settings, model, device, allow_cpu)
    if (clip is not None) != _is_text(settings):
        raise ValueError(
            "--clip: a model of prompts is conditioned by a CLIP artifact (`quest pretrain-clip`), any other by none"
        )
    text = None if clip is None else clips.load(clip, where)
    images, labels = _images(settings, pretrain, where)
    torch.manual_seed(pretrain.seed)
    classifier, accuracy = train_classifier(images, labels, pretrain, where)
    log.info("classifier accuracy on held-out images: %.4f", accuracy)
    name = f"{settings.real_images}-classifier"
    save_extractor(extractor, classifier, name, _manifest(pretrain, accuracy=accuracy))

    if pretrain.autoencoder is None:
        stage, clean, quality = None, images.float() / 127.5 - 1, {}
    else:
        stage, clean, quality = train_autoencoder(images, pretrain.autoencoder, where)
        log.info("first stage: %s", quality)
    conditions, conditioner = None, None
    if text is not None:
        conditioner = text.text_encoder()
        with torch.no_grad():
            contexts = conditioner(embedded.captions(settings.real_images)), conditioner([None])
        conditions = denoiser.of_contexts(labels, *contexts)
    elif settings.condition is not None and settings.condition.classes is not None:
        classes = embedded.classes(settings.real_images, labels)
        if int(classes.max()) >= settings.condition.classes:
            raise ValueError(f"condition.classes: {settings.condition.classes}, but images are of more")
        conditions = denoiser.of_classes(classes, settings.condition.classes, pretrain.unet, where)
    trained = denoiser.train_denoiser(clean, pretrain, where, conditions)
    context: Conditioner | None = conditioner if trained.embedder is None else trained.embedder
    result = Denoiser(trained.network, trained.scheduler, stage, context)
    # The account stands with the model, so that the row of full precision has its size and cost beside the others'.
    notes = {"loss": trained.loss, "account": account(trained.network, result.example())}
    notes |= {f"first_stage_{name}": value for name, value in quality.items()}
    inputs = {} if text is None else {"clip": text.sha256}
    denoisers.save(model, result, _manifest(pretrain, inputs, **notes), torch.float16)


def run_clip(settings: DatasetSettings, output: Path, device: str, allow_cpu: bool) -> None:
    """Train the CLIP model of a text-conditional embedded dataset and write its artifact."""
    pretrain, where = _start(settings, output, device, allow_cpu)
    if pretrain.clip is None:
        raise ValueError("pretrain.clip: missing, so there is no CLIP model to train; datasets of prompts have one")
    images, labels = _images(settings, pretrain, where)
    torch.manual_seed(pretrain.seed)
    model, accuracy = train_clip(images, labels, embedded.captions(settings.real_images), pretrain.clip, where)
    log.info("CLIP finds the caption of held-out images: %.4f", accuracy)
    clips.save(output, model, _manifest(pretrain, accuracy=accuracy))


def _start(
    settings: DatasetSettings, output: Path, device: str, allow_cpu: bool
) -> tuple[PretrainSettings, torch.device]:
    if settings.pretrain is None or settings.real_images is None:
        raise ValueError(
            "pretrain: this dataset is not an embedded one; its model is brought by the user, not trained here"
        )
    where = resolve(device)
    if where.type == "cpu" and not allow_cpu:
        raise ValueError(
            f"{output} is missing and this machine has no GPU to train it on. The trained model is shared: "
            f"`dvc pull {output.parent}` fetches it. To train it here all the same (hours): --allow-cpu"
        )
    return settings.pretrain, where


def _images(settings: DatasetSettings, pretrain: PretrainSettings, device: torch.device) -> tuple[Tensor, Tensor]:
    assert settings.real_images is not None  # `_start` has seen it
    stream = f"pretrain/{pretrain.seed}"
    return embedded.labelled_images(settings.real_images, settings.image_size, pretrain.images, stream, device)


def _is_text(settings: DatasetSettings) -> bool:
    return settings.condition is not None and settings.condition.prompts is not None


def _manifest(pretrain: PretrainSettings, inputs: dict[str, str] | None = None, /, **notes: Any) -> artifacts.Manifest:
    return artifacts.Manifest(
        "", settings=artifacts.plain(pretrain), seeds={"pretrain": pretrain.seed}, inputs=inputs or {}, notes=notes
    )
