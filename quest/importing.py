"""The `import` stage: the published full-precision model of a dataset becomes its model artifact, once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from quest.artifacts import ArtifactError, Manifest
from quest.config import DatasetSettings
from quest.models import denoiser as denoisers
from quest.models import loaders
from quest.models.denoiser import Denoiser
from quest.quantization.account import account

log = logging.getLogger(__name__)


def run(settings: DatasetSettings, output: Path) -> None:
    """Convert ``settings.source`` and write it, weights in the precision that they have there.

    Raises ArtifactError when the source is not there, is not what its checksum says or does not fit.
    """
    if settings.source is None:
        raise ValueError("source: not set; this dataset's model is trained here, or brought as an artifact")
    path = loaders.locate(settings.source, settings.architecture)
    sha256 = loaders.checksum(path)
    log.info("%s: sha256 %s", path, sha256)
    if settings.source_sha256 not in (None, sha256):
        raise ArtifactError(
            f"{path}: sha256 is {sha256}, source_sha256 is {settings.source_sha256}; "
            "it is another file or damaged, fetch it again"
        )
    model = loaders.open_source(path, settings.architecture)
    notes: dict[str, Any] = {"source": settings.source, "account": account_of(model)}
    denoisers.save(output, model, Manifest(kind="model", inputs={"source": sha256}, notes=notes))


def account_of(model: Denoiser) -> dict[str, Any]:
    """The bit account of a model, from shapes alone: it stands with the model, for the row of full precision."""
    architecture: Any = type(model.network)
    with torch.device("meta"):
        network = architecture.from_config(model.network.config)
    example = tuple(
        argument.to("meta", torch.float32 if argument.is_floating_point() else argument.dtype)
        for argument in model.example()
    )
    return account(network, example)
