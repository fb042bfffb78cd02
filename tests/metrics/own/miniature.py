"""A stand-in for Inception: the parts of torch-fidelity's network that the extractors touch, at a small width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quest.metrics.inception import NAME, InceptionExtractor

WIDTH = 9


class _Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch1x1 = nn.Conv2d(3, WIDTH, 5, stride=50)

    def forward(self, x: Tensor) -> Tensor:
        return self.branch1x1(x)


class Miniature(nn.Module):
    """Modules in the order of a call, the classifier last."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.Mixed_6d = _Mixed()
        self.AvgPool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(WIDTH, 5)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Of images that are 299×299 already; others are resized by a filter of no evaluator."""
        x = nn.functional.interpolate((images.float() - 128) / 128, size=(299, 299))
        pooled = self.AvgPool(self.Mixed_6d(x)).flatten(1)
        return pooled, pooled @ self.fc.weight.T


def inception(name: str = NAME, sha256: str = "6" * 64) -> InceptionExtractor:
    return InceptionExtractor(Miniature(), name, sha256, "cpu")
