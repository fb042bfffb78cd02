"""The small feature extractor of an embedded dataset: a classifier whose features serve FID, sFID and IS.

Stands where the Inception network stands in the papers' protocol: pooled features for FID, precision and recall,
a spatial map for sFID, class logits for IS.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from quest.artifacts import ArtifactError, Manifest, load_tensors, save_tensors

SPATIAL_CHANNELS = 8  # of the last map, so that its covariance stays well estimated from a thousand images


class Features(NamedTuple):
    """pooled (N, 64), spatial (N, SPATIAL_CHANNELS · h · w) and logits (N, classes), float32."""

    pooled: Tensor
    spatial: Tensor
    logits: Tensor


class Classifier(nn.Module):
    """Three convolutions and a linear layer, for images of 16×16 to 32×32."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
        )
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(64, classes)

    def features(self, x: Tensor) -> Features:
        """x (N, C, H, W) in [-1, 1]."""
        maps = self.body(x)
        pooled = maps.mean((2, 3))
        return Features(pooled, maps[:, :SPATIAL_CHANNELS].flatten(1), self.head(self.dropout(pooled)))

    def forward(self, x: Tensor) -> Tensor:
        """Class logits (N, classes) of x (N, C, H, W) in [-1, 1]."""
        return self.features(x).logits


class Extractor:
    """A loaded extractor: uint8 images in, `Features` out. ``name`` and ``sha256`` go into every result."""

    def __init__(self, classifier: Classifier, name: str, sha256: str, device: torch.device | str):
        self.name, self.sha256 = name, sha256
        self._classifier = classifier.eval().requires_grad_(False).to(device)
        self._channels = classifier.body[0].in_channels
        self._device = device

    @torch.inference_mode()
    def __call__(self, images: Tensor, batch_size: int = 256) -> Features:
        """images (N, C, H, W) uint8 to features on the CPU. Raises ValueError for another dtype or channel count."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != self._channels:
            raise ValueError(
                f"extractor {self.name}: found images {tuple(images.shape)} {images.dtype}, "
                f"expected (N, {self._channels}, H, W) torch.uint8"
            )
        batches = [
            self._classifier.features(batch.to(self._device).float() / 127.5 - 1) for batch in images.split(batch_size)
        ]
        return Features(*(torch.cat(parts).cpu() for parts in zip(*batches, strict=True)))


def save_extractor(path: Path, classifier: Classifier, name: str, manifest: Manifest) -> Manifest:
    """Write an extractor artifact, weights in half precision."""
    notes = manifest.notes | {
        "name": name,
        "channels": classifier.body[0].in_channels,
        "classes": classifier.head.out_features,
    }
    tensors = {key: tensor.half() for key, tensor in classifier.state_dict().items()}
    return save_tensors(
        path, tensors, Manifest(kind="extractor", settings=manifest.settings, seeds=manifest.seeds, notes=notes)
    )


def load_extractor(path: Path, device: torch.device | str = "cpu") -> Extractor:
    """Read an extractor artifact. Raises ArtifactError when it is missing, corrupt or does not fit."""
    artifact = load_tensors(path, "extractor")
    notes = artifact.manifest.notes
    classifier = Classifier(notes["channels"], notes["classes"])
    try:
        classifier.load_state_dict({name: tensor.float() for name, tensor in artifact.tensors.items()})
    except RuntimeError as error:
        raise ArtifactError(f"{path}: weights do not fit the extractor: {error}") from error
    return Extractor(classifier, notes["name"], artifact.manifest.sha256, device)
