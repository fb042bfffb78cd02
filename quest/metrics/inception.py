"""The Inception network that the papers' numbers come from, as torch-fidelity has it, with a hook for sFID.

It is the network that torchmetrics uses, with the weights of TensorFlow's 2015 graph that ADM's evaluator runs. What
ADM reads from that graph is read here by the names of torch-fidelity's modules:
- pooled features, 2048: FID, KID, precision and recall;
- spatial features, 2023: sFID; the first 7 channels of the first branch of ``Mixed_6d``, flattened as H, W, C;
- logits without bias, 1008 classes: IS.

Images are resized to 299×299 by TensorFlow 1's bilinear interpolation without antialias, which torch-fidelity has.
torchmetrics resizes with antialias unless told otherwise, and its FID then differs from the papers'.
TF32 is off, whatever the caller allows elsewhere. torch-fidelity needs torchvision, so both are an extra:
``pip install 'quest-diffusion[inception]'``.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quest.artifacts import ArtifactError
from quest.metrics.extractor import Extractor, Features

NAME = "inception-fid"
WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
WEIGHTS_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS}"
SHA256_PREFIX = "6726825d"  # part of the published file's name, as torch.hub checks it
LAYERS = ["2048", "logits_unbiased"]  # torch-fidelity's names for what the network returns
SPATIAL_CHANNELS = 7


class InceptionExtractor(Extractor):
    """torch-fidelity's ``FeatureExtractorInceptionV3`` (made for LAYERS) as an `Extractor`."""

    resize = "tf1-bilinear-299"
    channels = 3
    batch_size = 64

    def __init__(self, network: Any, name: str, sha256: str, device: torch.device | str):
        self.name, self.sha256, self.device = name, sha256, device
        self.network = network.to(device).eval()
        self._spatial: list[Tensor] = []
        self.network.Mixed_6d.branch1x1.register_forward_hook(self._keep_spatial)

    def _keep_spatial(self, module: object, inputs: object, output: Tensor) -> None:
        # To channels last before flattening: that is the order of TensorFlow, where the statistics come from.
        self._spatial.append(output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1))

    def _forward(self, images: Tensor) -> Features:
        with without_tf32():
            pooled, logits = self.network(images)
        return Features(pooled, self._spatial.pop(), logits)


def load(weights: Path, device: torch.device | str = "cpu") -> InceptionExtractor:
    """The extractor with the published weights from ``weights``.

    Raises ArtifactError when the file is missing or another one, and when torch-fidelity is not installed.
    """
    if not weights.is_file():
        raise ArtifactError(
            f"{weights}: no such file; the Inception weights are not part of quest: download {WEIGHTS_URL} "
            f"and put the file there, or set extractor to where it lies"
        )
    sha256 = _digest(weights)
    if not sha256.startswith(SHA256_PREFIX):
        raise ArtifactError(
            f"{weights}: sha256 is {sha256[:12]}…, the published weights have {SHA256_PREFIX}…; "
            f"delete it and download {WEIGHTS_URL} again"
        )
    network = network_class()(NAME, LAYERS, feature_extractor_weights_path=str(weights))
    return InceptionExtractor(network, NAME, sha256, device)


def untrained(folder: Path, device: torch.device | str = "cpu", seed: int = 0) -> InceptionExtractor:
    """The extractor with random weights, for tests and speed; its numbers mean nothing.

    folder: for a file that torch-fidelity wants to read instead of downloading weights.
    """

    class Untrained(network_class()):
        def load_state_dict(self, *args: Any, **kwargs: Any) -> None:
            """Keeps the weights that the network was made with."""

    torch.save({}, folder / "none.pth")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Untrained("untrained", LAYERS, feature_extractor_weights_path=str(folder / "none.pth"))
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):  # else values fade to nothing on the way through
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):  # else values fade to nothing on the way through
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return InceptionExtractor(network, "inception-untrained", "0" * 64, device)


def cached_weights() -> Path:
    """Where torch-fidelity and torchmetrics keep the weights: torch.hub's folder in the user's cache."""
    return Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS


def network_class() -> Any:
    """torch-fidelity's network. Raises ArtifactError, saying how to get it, when it cannot be imported."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (  # pyright: ignore[reportMissingImports]
            FeatureExtractorInceptionV3,
        )
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that does not fit torch
        raise ArtifactError(
            f"{NAME} needs torch-fidelity and a torchvision that fits torch ({error}); "
            "pip install 'quest-diffusion[inception]'"
        ) from error
    return FeatureExtractorInceptionV3


def library_version() -> str:
    """torch-fidelity's version; "not installed" without it."""
    try:
        return importlib.metadata.version("torch-fidelity")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Full float32 convolutions and products; cuDNN rounds inputs to 10 bits by default."""
    backends: tuple[Any, Any] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    try:
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
