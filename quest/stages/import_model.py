"""Convert the published full-precision model of DATASET, once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click
import torch

from quest import architectures
from quest.artifacts import ArtifactError, Manifest
from quest.config.dataset import DatasetSettings
from quest.diffusion import denoiser as denoisers
from quest.diffusion.denoiser import Denoiser
from quest.quantization.account import account
from quest.sources import fit, pipelines, schedules
from quest.stages import OUTPUT, PROTOCOL

log = logging.getLogger(__name__)


SECTIONS = ("source", "source_sha256", "architecture", "clip_sample")
PARAMETERS = (*PROTOCOL, click.Option(["--source"], help="Instead of the protocol's: folder, .ckpt or hub id."), OUTPUT)


def run(dataset: str, settings: DatasetSettings, source: str | None, output: Path) -> None:
    """Write an artifact of kind "model", weights in the precision that they have in ``source``, or the protocol's.

    Raises ArtifactError when the source is not there, is not what its checksum says, or does not fit the protocol.
    """
    source = source or settings.source
    if source is None:
        raise ValueError("source: not set; this dataset's model is trained here, or brought as an artifact")
    path = pipelines.locate(source, settings.architecture)
    sha256 = pipelines.checksum(path)
    log.info("%s: sha256 %s", path, sha256)
    if settings.source_sha256 not in (None, sha256):
        raise ArtifactError(
            f"{path}: sha256 is {sha256}, source_sha256 is {settings.source_sha256}; "
            "it is another file or damaged, fetch it again"
        )
    model = pipelines.open_source(path, settings.architecture, trusted=settings.source_sha256 is not None)
    if not settings.clip_sample:
        model.scheduler = schedules.without_clipping(model.scheduler)
    fit.check_protocol(model, settings, str(path))
    notes: dict[str, Any] = {"source": source, "account": account_of(model)}
    denoisers.save(output, model, Manifest(kind="model", inputs={"source": sha256}, notes=notes))


def account_of(model: Denoiser) -> dict[str, Any]:
    """The bit account of a model, from shapes alone: it stands with the model, for the row of full precision."""
    full: Any = model.network
    with torch.device("meta"):
        network = architectures.build(type(full).__name__, full.config)
    example = tuple(
        argument.to("meta", torch.float32 if argument.is_floating_point() else argument.dtype)
        for argument in model.example()
    )
    return account(network, example)
