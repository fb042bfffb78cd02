"""Training of the embedded full-precision models and their feature extractors (the `pretrain` rule)."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from tqdm import tqdm

from quest import artifacts
from quest.config import DatasetSettings, PretrainSettings
from quest.device import resolve
from quest.metrics.extractor import Classifier, save_extractor
from quest.models import denoiser, embedded
from quest.models.denoiser import Denoiser
from quest.quantization.account import account

log = logging.getLogger(__name__)


def run(settings: DatasetSettings, model: Path, extractor: Path, device: str, allow_cpu: bool) -> None:
    """Train both networks of an embedded dataset and write their artifacts."""
    if settings.pretrain is None or settings.real_images is None:
        raise ValueError(
            "pretrain: this dataset is not an embedded one; its model is brought by the user, not trained here"
        )
    where = resolve(device)
    if where.type == "cpu" and not allow_cpu:
        raise ValueError(
            f"{model} is missing and this machine has no GPU to train it on. The trained model is shared: "
            f"`dvc pull {model.parent}` fetches it. To train it here all the same (hours): --allow-cpu"
        )
    images, labels = embedded.labelled_images(settings.real_images, settings.image_size)
    torch.manual_seed(settings.pretrain.seed)
    manifest = artifacts.Manifest(
        kind="", settings=artifacts.plain(settings.pretrain), seeds={"pretrain": settings.pretrain.seed}
    )
    classifier, accuracy = train_classifier(images, labels, settings.pretrain, where)
    log.info("classifier accuracy on held-out images: %.4f", accuracy)
    save_extractor(extractor, classifier, f"{settings.real_images}-classifier", _with_note(manifest, accuracy=accuracy))

    network, scheduler, loss = train_denoiser(images, settings, settings.pretrain, where)
    shape = (1, settings.image_channels, settings.image_size, settings.image_size)
    example = torch.zeros(shape, device=where), torch.zeros(1, dtype=torch.long, device=where)
    # The account stands with the model, so that the row of full precision has its size and cost beside the others'.
    notes = _with_note(manifest, loss=loss, account=account(network, example))
    denoiser.save(model, Denoiser(network, scheduler), notes, torch.float16)


def train_classifier(
    images: Tensor, labels: Tensor, settings: PretrainSettings, device: torch.device
) -> tuple[Classifier, float]:
    """The feature extractor, trained on five sixths of the images, and its accuracy on the rest.

    Images are shifted by up to two pixels at random, so that features do not hang on exact positions.
    """
    x, y = images.float().to(device) / 127.5 - 1, labels.to(device)
    held_out = torch.arange(len(x), device=device) % 6 == 5
    train_x, train_y = x[~held_out], y[~held_out]
    classifier = Classifier(x.shape[1], int(y.max()) + 1).to(device)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.classifier_steps)
    for _ in tqdm(range(settings.classifier_steps), desc="classifier", mininterval=5):
        batch = torch.randint(len(train_x), (256,), device=device)
        shift = torch.randint(-2, 3, (2,)).tolist()
        loss = cross_entropy(classifier(torch.roll(train_x[batch], shift, (2, 3))), train_y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    classifier.eval()
    with torch.inference_mode():
        accuracy = (classifier(x[held_out]).argmax(1) == y[held_out]).float().mean().item()
    return classifier, accuracy


def build_unet(settings: DatasetSettings, pretrain: PretrainSettings) -> UNet2DModel:
    """An untrained UNet2DModel of the configured architecture."""
    unet = pretrain.unet
    return UNet2DModel(
        sample_size=settings.image_size,
        in_channels=settings.image_channels,
        out_channels=settings.image_channels,
        block_out_channels=unet.channels,
        layers_per_block=unet.layers_per_block,
        down_block_types=tuple("AttnDownBlock2D" if attention else "DownBlock2D" for attention in unet.attention),
        up_block_types=tuple("AttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(unet.attention)),
        attention_head_dim=unet.attention_head_dim,
        norm_num_groups=8,
        dropout=unet.dropout,
    )


def train_denoiser(
    images: Tensor, settings: DatasetSettings, pretrain: PretrainSettings, device: torch.device
) -> tuple[UNet2DModel, DDIMScheduler, float]:
    """The noise predictor (Ho et al. 2020, eq. 14), the moving average of its weights, and its last loss."""
    x = images.float().to(device) / 127.5 - 1
    scheduler = DDIMScheduler(num_train_timesteps=1000, beta_schedule="linear", clip_sample=False, steps_offset=1)
    alphas = scheduler.alphas_cumprod.to(device)
    network = build_unet(settings, pretrain).to(device).train()  # type: ignore[arg-type]
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=pretrain.lr, weight_decay=pretrain.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, pretrain.steps)
    recent = torch.zeros((), device=device)
    progress = tqdm(range(pretrain.steps), desc="denoiser", mininterval=5)
    for step in progress:
        clean = x[torch.randint(len(x), (pretrain.batch_size,), device=device)]
        t = torch.randint(len(alphas), (len(clean),), device=device)
        noise = torch.randn_like(clean)
        signal = alphas[t].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
        with torch.autocast(device.type, torch.bfloat16):
            loss = mse_loss(network(noisy, t).sample.float(), noise)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        # A short memory at first, so that the average does not keep the random start.
        decay = min(pretrain.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, parameter in zip(average.parameters(), network.parameters(), strict=True):
                mean.lerp_(parameter, 1 - decay)
        recent.lerp_(loss.detach(), 0.01)
        if step % 500 == 499:
            progress.set_postfix(loss=f"{recent.item():.4f}")
    return average.eval(), scheduler, recent.item()


def _with_note(manifest: artifacts.Manifest, **notes: Any) -> artifacts.Manifest:
    return artifacts.Manifest(kind=manifest.kind, settings=manifest.settings, seeds=manifest.seeds, notes=notes)
