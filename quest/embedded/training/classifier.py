"""Training of an embedded dataset's feature extractor: a classifier of its images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from quest.config.pretraining import PretrainSettings
from quest.embedded.training.optimization import fit
from quest.metrics.extractor import Classifier


def train_classifier(
    images: Tensor, labels: Tensor, settings: PretrainSettings, device: torch.device
) -> tuple[Classifier, float]:
    """The feature extractor, trained on five sixths of the images, and its accuracy on the rest.

    Images are shifted by up to two pixels at random, so that features do not hang on exact positions.
    """
    x, y = images.to(device), labels.to(device)
    held_out = torch.arange(len(x), device=device) % 6 == 5
    train_x, train_y = x[~held_out], y[~held_out]
    classifier = Classifier(x.shape[1], int(y.max()) + 1, settings.classifier_width).to(device)

    def loss_of(_step: int) -> Tensor:
        batch = torch.randint(len(train_x), (256,), device=device)
        shift = torch.randint(-2, 3, (2,)).tolist()
        return cross_entropy(classifier(torch.roll(_scaled(train_x[batch]), shift, (2, 3))), train_y[batch])

    fit(classifier, loss_of, "classifier", settings.classifier_steps, lr=2e-3, weight_decay=1e-2)
    with torch.inference_mode():
        right = [
            classifier(_scaled(part)).argmax(1) == target
            for part, target in zip(x[held_out].split(4096), y[held_out].split(4096), strict=True)
        ]
    return classifier, torch.cat(right).float().mean().item()


def _scaled(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1
