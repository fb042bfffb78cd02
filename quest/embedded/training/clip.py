"""Contrastive training of a small CLIP (Radford et al. 2021, figure 3) on pictures and their captions."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from quest.config.pretraining import ClipTrainingSettings
from quest.embedded import clip
from quest.embedded.clip import Clip
from quest.embedded.training.optimization import fit


def build(captions: Sequence[str], image_size: int, settings: ClipTrainingSettings) -> Clip:
    """An untrained model whose vocabulary are the words of ``captions``."""
    words = sorted({word for caption in captions for word in re.findall(r"\w+", caption)})
    tower = {
        "hidden_size": settings.width,
        "intermediate_size": 4 * settings.width,
        "num_attention_heads": settings.width // settings.head_width,
    }
    vision = {"num_hidden_layers": settings.vision_layers, "image_size": image_size, "patch_size": settings.patch_size}
    text = {"num_hidden_layers": settings.text_layers}
    return clip.build(tower | text, tower | vision, settings.width, clip.tokenizer(words, settings.tokens))


def train_clip(
    images: Tensor, labels: Tensor, captions: Sequence[str], settings: ClipTrainingSettings, device: torch.device
) -> tuple[Clip, float]:
    """Train on images (N, 3, H, W) uint8, the caption of each by its label. Returns the model and its accuracy.

    A batch has one picture of each caption, so that no caption but a picture's own fits it. Accuracy: how often the
    nearest of all captions is the right one, on every sixth image, which is not trained on.
    """
    model = build(captions, images.shape[-1], settings)
    model.model.to(device)
    x, y = images.to(device), labels.to(device)
    held_out = torch.arange(len(x), device=device) % 6 == 5
    known, y_known = x[~held_out], y[~held_out]
    order, counts = y_known.argsort(), y_known.bincount(minlength=len(captions))
    present = counts.nonzero()[:, 0]
    starts, counts = (counts.cumsum(0) - counts)[present], counts[present]
    tokens = model.tokens(captions)[present]
    targets = torch.arange(len(present), device=device)

    def loss_of(_step: int) -> Tensor:
        chosen = order[starts + (torch.rand(len(starts), device=device) * counts).long()]
        found = model.model(input_ids=tokens, pixel_values=model.pixels(known[chosen]))
        logits = found.logits_per_image
        return (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2

    fit(model.model, loss_of, "CLIP", settings.steps, settings.lr, weight_decay=1e-2)
    model.model.requires_grad_(False)
    every = model.tokens(captions)
    with torch.inference_mode():
        right = [
            model.model(input_ids=every, pixel_values=model.pixels(part)).logits_per_image.argmax(1) == label
            for part, label in zip(x[held_out].split(1024), y[held_out].split(1024), strict=True)
        ]
    return model, torch.cat(right).float().mean().item()
