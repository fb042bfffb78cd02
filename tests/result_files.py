"""Metrics artifacts like those of `quest measure`, with made-up numbers: for tables, figures and tracking."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quest.artifacts import Manifest, save_json
from quest.config.methods import base_method
from quest.report.tables import Row

CELLS = [("quest", "w4a4"), ("nearest", "w4a4"), ("fp", "w32a32"), ("nearest", "w8a8"), ("quest", "w8a8")]
FID = {"w32a32": 2.0, "w8a8": 2.5, "w4a4": 40.0}


def row(method: str = "quest", bits: str = "w4a4", seed: int = 0, **changes: Any) -> Row:
    """A flat row of the digits; nearest has twice QuEST's FID, and each seed adds 1."""
    fid = FID[bits] * (2 if method == "nearest" else 1) + seed
    numbers = {
        "dataset": "digits",
        "method": method,
        "bits": bits,
        "seed": seed,
        "chain_seed": None if method == "fp" else seed,
        "images": 1000,
        "reference_images": 1797,
        "fid": fid,
        "fid_se": 0.1,
        "fid_infinity": fid - 0.5,
        "sfid": 1.5 * fid,
        "is": 9 - fid / 20,
        "is_std": 0.25,
        "precision": 0.9 - fid / 200,
        "recall": 0.8 - fid / 200,
        "psnr": None if method == "fp" else 40 - fid / 4,
        "mse": 0.0 if method == "fp" else 1e-4 * fid,
        "extractor": "digits-classifier",
        "extractor_sha256": "e" * 64,
        "resize": "none",
        "neighbours": 3,
        "inception_split_size": 100,
        "kid_block_size": 100,
        "manifold_images": 1797,
        "weight_mib": 4.0 if method == "fp" else 0.5,
        "gbops": 100.0 if method == "fp" else 1.5,
        "layers": 40,
        "activation_granularity": "per_channel",
    }
    return numbers | changes


def write_metrics(folder: Path, content: Row, manifest: dict[str, Any] | None = None) -> Path:
    """``content`` as a metrics artifact named by its cell; ``manifest`` changes its settings, inputs and notes."""
    changes = {"settings": {}, "inputs": {}, "notes": {}} | (manifest or {})
    file = folder / f"{content['method']}-{content['bits']}-seed{content['seed']}.json"
    settings = {
        "sampler": {"kind": "ddim", "steps": 20, "eta": 0.0},
        "evaluation": {"images": 1000, "neighbours": 3},
    }
    if content["method"] != "fp":
        settings["methods"] = {base_method(content["method"]): {"sets": 20}}
    inputs = {"reference": "r" * 64, "model": "m" * 64, "extractor": "e" * 64}
    save_json(
        file,
        content,
        Manifest(
            kind="metrics",
            settings=settings | changes["settings"],
            seeds={"run": content["seed"]},
            inputs=inputs | changes["inputs"],
            notes=changes["notes"],
        ),
    )
    return file


def write_all(folder: Path, seeds: int = 1, cells: Sequence[tuple[str, str]] = CELLS, **changes: Any) -> list[Path]:
    """The metrics of every cell on ``seeds`` seeds, in no order."""
    return [write_metrics(folder, row(*cell, seed, **changes)) for seed in range(seeds) for cell in cells]
