"""Metrics of one cell from all of its SAMPLES shards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from quest.artifacts import Manifest, load_tensors, plain, save_json
from quest.config.dataset import DatasetSettings
from quest.config.values import FULL_PRECISION, UNQUANTIZED
from quest.metrics import measure
from quest.metrics import reference as references
from quest.metrics.extractor import load_extractor
from quest.stages import DEVICE, MODEL, OUTPUT, PROTOCOL, file, files

SECTIONS = ("evaluation",)
PARAMETERS = (
    *PROTOCOL,
    files("samples"),
    file("full-precision", "Shards of the full-precision model on the same seeds.", many=True),
    file("reference"),
    file("extractor"),
    file("checkpoint", "Low-bit checkpoint, for its bit account; full precision without.", required=False),
    MODEL,
    OUTPUT,
    DEVICE,
)


def run(
    dataset: str,
    settings: DatasetSettings,
    samples: Sequence[Path],
    full_precision: Sequence[Path],
    reference: Path,
    extractor: Path,
    checkpoint: Path | None,
    model: Path,
    output: Path,
    device: torch.device,
) -> None:
    """Write an artifact of kind "metrics", a flat row.

    samples and full_precision: all shards of the cell, and of full precision on the same seed.
    checkpoint: the cell's, for its bit account; None for full precision, whose account is the model's.

    The row: dataset, method, bits, seed, images, and chain_seed, the checkpoint's, which seeds may share (null for full
    precision); the metrics of `evaluation.numbers` with their errors, and clip and clip_se where the protocol asks for
    them; mse of full-precision images on the [0, 1] scale, over all pixels of all images, and psnr of it in dB (null
    when the images are identical); what `evaluation.provenance` says they were measured with, and clip_model and
    clip_prompts_sha256; backend where it is not the default; the bit account; trained_share and optimizer_steps of a
    finetuned cell. Notes: mse_of_images, that of each image in their order, to four digits, which intervals over images
    come from. Raises ValueError when files do not belong together or a number is not finite.
    """
    network = load_extractor(extractor, device)
    real = references.load(reference)
    if real.extractor_sha256 != network.sha256:
        raise ValueError(
            f"{reference}: made with extractor {real.extractor_sha256[:12]}…, but {extractor} is {network.sha256[:12]}…"
        )
    if real.image_size != settings.image_size:
        raise ValueError(f"{reference}: of images of size {real.image_size}, but image_size is {settings.image_size}")
    origin = load_tensors(model, "model").manifest
    quantized = load_tensors(checkpoint, "checkpoint").manifest if checkpoint else None
    origins = {"model": origin.sha256} | ({"checkpoint": quantized.sha256} if quantized else {})

    score, prompts, chosen = measure.clip_score(settings, device)
    gathered = measure.gather(samples, full_precision, settings, network, score, prompts)
    manifest, teacher = gathered.manifests[0], gathered.teacher_manifests[0]
    measure.require_origin(samples[0], manifest, origins)
    measure.require_origin(full_precision[0], teacher, {"model": origin.sha256})
    if measure.cell(teacher) != (FULL_PRECISION, str(UNQUANTIZED), manifest.seeds["run"]):
        raise ValueError(
            f"{full_precision[0]}: given as --full-precision, but it is {measure.cell(teacher)}; "
            f"expected {FULL_PRECISION} on seed {manifest.seeds['run']}"
        )

    row = measure.row(dataset, settings, manifest, gathered, real, network, device) | chosen
    row |= measure.require_backend(samples[0], manifest, settings)
    row["chain_seed"] = quantized.seeds["run"] if quantized else None
    notes = (quantized or origin).notes
    row |= notes.get("account", {})
    if "optimizer_steps" in notes:
        row |= {
            "trained_share": notes["trained_share"],
            "optimizer_steps": sum(notes["optimizer_steps"].values()),
        }
    for name, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{samples[0]}: {name} is {value}; expected a finite number")
    save_json(
        output,
        row,
        Manifest(
            kind="metrics",
            # Of every stage that the cell went through: the method's stand in its checkpoint.
            settings=(quantized.settings if quantized else {})
            | manifest.settings
            | {"evaluation": plain(settings.evaluation)},
            seeds=manifest.seeds,
            inputs=origins
            | {"reference": real.sha256, "extractor": network.sha256}
            | {f"samples.{shard}": m.sha256 for shard, m in enumerate(gathered.manifests)}
            | {f"full_precision.{shard}": m.sha256 for shard, m in enumerate(gathered.teacher_manifests)},
            notes={"mse_of_images": [float(f"{error:.4g}") for error in gathered.errors]},
        ),
    )
