"""Metrics and images of single cells, as `dvc pull` leaves them."""

from __future__ import annotations

from pathlib import Path

import torch
from result_files import row, write_metrics

from quest.artifacts import Manifest, save_tensors

SHARD = "5" * 64  # sha256 of the samples that every cell's numbers and images are of


def write_cell(root: Path, method: str, bits: str, seed: int = 0, dataset: str = "digits", **manifest) -> Path:
    """Metrics of a cell, and the file that its images belong into."""
    inputs = {"samples.0": SHARD} | manifest.pop("inputs", {})
    folder = root / "results/metrics" / dataset
    write_metrics(folder, row(method, bits, seed, dataset=dataset), {"inputs": inputs} | manifest)
    return root / f"results/previews/{dataset}/{method}-{bits}-seed{seed}.safetensors"


def write_images(
    file: Path, level: int, channels: int = 1, condition: dict | None = None, samples: str = SHARD
) -> None:
    """64 images of 16 pixels: image i has the value ``level`` + i everywhere."""
    images = (level + torch.arange(64, dtype=torch.uint8)).view(-1, 1, 1, 1).expand(-1, channels, 16, 16)
    manifest = Manifest(kind="preview", settings={"condition": condition}, inputs={"samples": samples})
    save_tensors(file, {"images": images.contiguous()}, manifest)
