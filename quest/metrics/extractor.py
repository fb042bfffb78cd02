"""Feature extractors: what every extractor is, and the small classifier of an embedded dataset.

The classifier stands where the Inception network (`quest.metrics.inception`) stands in the papers' protocol: pooled
features for FID, KID, precision and recall, a spatial map for sFID, class logits for IS.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from quest.artifacts import ArtifactError, Manifest, load_tensors, save_tensors

SPATIAL_CHANNELS = 8  # of the last map, so that its covariance stays well estimated from a thousand images


class Features(NamedTuple):
    """pooled (N, D), spatial (N, S) and logits (N, classes), float32."""

    pooled: Tensor
    spatial: Tensor
    logits: Tensor


class Classifier(nn.Module):
    """Three convolutions and a linear layer on ``width`` features, for images of 16×16 to 32×32."""

    def __init__(self, channels: int, classes: int, width: int = 64):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width // 2, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width // 2, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
        )
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(width, classes)

    def features(self, x: Tensor) -> Features:
        """x (N, C, H, W) in [-1, 1]."""
        maps = self.body(x)
        pooled = maps.mean((2, 3))
        return Features(pooled, maps[:, :SPATIAL_CHANNELS].flatten(1), self.head(self.dropout(pooled)))

    def forward(self, x: Tensor) -> Tensor:
        """Class logits (N, classes) of x (N, C, H, W) in [-1, 1]."""
        return self.features(x).logits


class Extractor(ABC):
    """uint8 images in, `Features` out.

    name, sha256: of the network and its weights; resize: how images become its input. All three go into every result.
    channels: of the images that it takes. batch_size: images at a time unless the caller says otherwise.
    """

    name: str
    sha256: str
    resize: str
    channels: int
    batch_size: int
    device: torch.device | str

    @torch.inference_mode()
    def __call__(self, images: Tensor, batch_size: int | None = None) -> Features:
        """images (N, C, H, W) uint8 to features on the extractor's device.

        Raises ValueError for no images, another dtype or channel count; of floating-point images it says whether
        they hold NaN and what range they have.
        """
        self._check(images)
        pinned = torch.device(self.device).type == "cuda" and images.device.type == "cpu"
        batches = [
            # A batch in pinned memory travels while the one before is computed.
            self._forward((batch.pin_memory() if pinned else batch).to(self.device, non_blocking=True))
            for batch in images.split(batch_size or self.batch_size)
        ]
        return Features(*(torch.cat(parts) for parts in zip(*batches, strict=True)))

    @abstractmethod
    def _forward(self, images: Tensor) -> Features:
        """Features of one batch (N, channels, H, W) uint8 on the device, in inference mode."""

    def _check(self, images: Tensor) -> None:
        if images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] == self.channels and len(images):
            return
        found = f"images {tuple(images.shape)} {images.dtype}"
        if images.is_floating_point() and images.numel():
            bad = int((~images.isfinite()).flatten(1).any(1).sum()) if images.ndim > 1 else 0
            low, high = images.aminmax()
            found += f" with NaN or infinite values in {bad}" if bad else f" from {low:.4g} to {high:.4g}"
        hint = "; scale to 0 … 255, round and clip them first" if images.is_floating_point() else ""
        raise ValueError(f"extractor {self.name}: found {found}, expected (N, {self.channels}, H, W) torch.uint8{hint}")


class ClassifierExtractor(Extractor):
    """A trained `Classifier`; images keep their size."""

    resize = "none"
    batch_size = 256

    def __init__(self, classifier: Classifier, name: str, sha256: str, device: torch.device | str):
        self.name, self.sha256, self.device = name, sha256, device
        self.channels = cast(nn.Conv2d, classifier.body[0]).in_channels
        self._classifier = classifier.eval().requires_grad_(False).to(device)

    def _forward(self, images: Tensor) -> Features:
        return self._classifier.features(images.float() / 127.5 - 1)


def save_extractor(path: Path, classifier: Classifier, name: str, manifest: Manifest) -> Manifest:
    """Write an extractor artifact, weights in half precision."""
    notes = manifest.notes | {
        "name": name,
        "channels": classifier.body[0].in_channels,
        "classes": classifier.head.out_features,
        "width": classifier.head.in_features,
    }
    tensors = {key: tensor.half() for key, tensor in classifier.state_dict().items()}
    return save_tensors(
        path, tensors, Manifest(kind="extractor", settings=manifest.settings, seeds=manifest.seeds, notes=notes)
    )


def load_extractor(path: Path, device: torch.device | str = "cpu") -> Extractor:
    """An extractor artifact; or the Inception network, for ``inception-fid`` or the path of its weights (``.pth``).

    Raises ArtifactError when it is missing, corrupt or does not fit.
    """
    if str(path) == "inception-fid" or path.suffix == ".pth":
        from quest.metrics import inception

        return inception.load(inception.cached_weights() if str(path) == "inception-fid" else path, device)
    artifact = load_tensors(path, "extractor")
    notes = artifact.manifest.notes
    classifier = Classifier(notes["channels"], notes["classes"], notes.get("width", 64))
    try:
        classifier.load_state_dict({name: tensor.float() for name, tensor in artifact.tensors.items()})
    except RuntimeError as error:
        raise ArtifactError(f"{path}: weights do not fit the extractor: {error}") from error
    return ClassifierExtractor(classifier, notes["name"], artifact.manifest.sha256, device)
