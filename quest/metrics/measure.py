"""Metrics of one cell, gathered from all its shards: against real images, and image by image against full precision."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from quest.artifacts import Manifest, TensorArtifact, load_tensors, plain, save_json
from quest.config import FULL_PRECISION, UNQUANTIZED, DatasetSettings
from quest.device import resolve
from quest.metrics import distances, evaluation, reference
from quest.metrics.distances import Estimate
from quest.metrics.extractor import Extractor, load_extractor
from quest.metrics.statistics import Accumulator

if TYPE_CHECKING:
    from quest.metrics.clip import ClipScore


_DIFFERENCES = 16  # images whose differences are in memory at once, in four times their bytes


class _Gathered(NamedTuple):
    """What remains of a cell's images: statistics, closeness to full precision, CLIP score if asked for, manifests."""

    statistics: Accumulator
    mse: float
    clip: Estimate | None
    manifests: list[Manifest]
    teacher_manifests: list[Manifest]


def run(
    dataset: str,
    settings: DatasetSettings,
    samples: Sequence[Path],
    full_precision: Sequence[Path],
    reference_file: Path,
    extractor_path: Path,
    checkpoint: Path | None,
    model: Path,
    output: Path,
    device: str,
) -> None:
    """The `measure` stage: an artifact of kind "metrics", a flat row.

    samples and full_precision: all shards of the cell, and of full precision on the same seed.
    checkpoint: the cell's, for its bit account; None for full precision, whose account is the model's.

    The row: dataset, method, bits, seed, images, and chain_seed, the checkpoint's, which seeds may share (null for full
    precision); the metrics of `evaluation.numbers` with their errors, and clip and clip_se where the protocol asks for
    them; mse of full-precision images on the [0, 1] scale, over all pixels of all images, and psnr of it in dB (null
    when the images are identical); what `evaluation.provenance` says they were measured with, and clip_model and
    clip_prompts_sha256; the bit account; trained_share and optimizer_steps of a finetuned cell. Raises ValueError when
    files do not belong together or a number is not finite.
    """
    where = resolve(device)
    extractor = load_extractor(extractor_path, where)
    real = reference.load(reference_file)
    if real.extractor_sha256 != extractor.sha256:
        raise ValueError(
            f"{reference_file}: made with extractor {real.extractor_sha256[:12]}…, "
            f"but {extractor_path} is {extractor.sha256[:12]}…"
        )
    if real.image_size != settings.image_size:
        raise ValueError(
            f"{reference_file}: of images of size {real.image_size}, but image_size is {settings.image_size}"
        )
    origin = load_tensors(model, "model").manifest
    quantized = load_tensors(checkpoint, "checkpoint").manifest if checkpoint else None
    origins = {"model": origin.sha256} | ({"checkpoint": quantized.sha256} if quantized else {})

    score, prompts, chosen = _clip(settings, where)
    gathered = _gather(samples, full_precision, settings, extractor, score, prompts)
    manifest, teacher = gathered.manifests[0], gathered.teacher_manifests[0]
    _require_origin(samples[0], manifest, origins)
    _require_origin(full_precision[0], teacher, {"model": origin.sha256})
    if _cell(teacher) != (FULL_PRECISION, str(UNQUANTIZED), manifest.seeds["run"]):
        raise ValueError(
            f"{full_precision[0]}: given as --full-precision, but it is {_cell(teacher)}; "
            f"expected {FULL_PRECISION} on seed {manifest.seeds['run']}"
        )

    row = _row(dataset, settings, manifest, gathered, real, extractor, where) | chosen
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
            | {"reference": real.sha256, "extractor": extractor.sha256}
            | {f"samples.{shard}": m.sha256 for shard, m in enumerate(gathered.manifests)}
            | {f"full_precision.{shard}": m.sha256 for shard, m in enumerate(gathered.teacher_manifests)},
        ),
    )


def read_shards(files: Sequence[Path], settings: DatasetSettings) -> Iterator[TensorArtifact]:
    """The shards of one cell, one in memory at a time, in the order of their images.

    Raises ValueError, naming the file, unless they are one cell on one seed, drawn from the same network by the same
    sampler, with every image of ``settings.evaluation.images`` exactly once.
    """
    shape = (settings.image_channels, settings.image_size, settings.image_size)
    first: Manifest | None = None
    position = 0
    files = sorted(files, key=_natural)
    for file in files:
        artifact = load_tensors(file, "samples")
        manifest, images = artifact.manifest, artifact.tensors["images"]
        notes = manifest.notes
        first = first or manifest
        if _cell(manifest) != _cell(first):
            raise ValueError(f"{file}: a shard of {_cell(manifest)} among shards of {_cell(first)}")
        if (manifest.inputs, manifest.settings) != (first.inputs, first.settings):
            raise ValueError(f"{file}: drawn from another network or sampler than {files[0]}; sample it again")
        if notes["shards"] != len(files):
            raise ValueError(f"{file}: one of {notes['shards']} shards, but {len(files)} were given")
        if notes["first"] != position:
            raise ValueError(f"{file}: starts at image {notes['first']}, but {position} is next; give each shard once")
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != shape or not len(images):
            expected = f"(n, {', '.join(map(str, shape))}) torch.uint8"
            raise ValueError(f"{file}: found images {tuple(images.shape)} {images.dtype}, expected {expected}")
        position += len(images)
        yield artifact
        del artifact, images  # before the next one is read
    if position != settings.evaluation.images:
        raise ValueError(f"{files[-1]}: ends at {position} images; evaluation.images is {settings.evaluation.images}")


def _clip(settings: DatasetSettings, device: torch.device) -> tuple[ClipScore | None, list[str], dict[str, Any]]:
    """The CLIP score of the protocol, the prompts, and what a row says of both; nothing where it has none."""
    if settings.evaluation.clip is None:
        return None, [], {}
    from quest.metrics import clip

    chosen = settings.evaluation.clip
    prompts, digest = clip.read_prompts(chosen.prompts, settings.evaluation.images)
    score = clip.ClipScore(chosen.model, settings.evaluation.images, device)
    return score, prompts, {"clip_model": chosen.model, "clip_prompts_sha256": digest}


def _gather(
    samples: Sequence[Path],
    full_precision: Sequence[Path],
    settings: DatasetSettings,
    extractor: Extractor,
    score: ClipScore | None,
    prompts: list[str],
) -> _Gathered:
    statistics = evaluation.start(settings.evaluation, settings.evaluation.images, extractor)
    manifests: list[Manifest] = []
    teacher_manifests: list[Manifest] = []
    squares, values = 0.0, 0
    teachers = read_shards(full_precision, settings)
    # Not zip, which holds a pair until it has the next: two shards are in memory, not four.
    with tqdm(desc="measure", unit="shard", total=len(samples), mininterval=5) as progress:
        for own in read_shards(samples, settings):
            teacher = next(teachers, None)
            images = own.tensors["images"]
            if teacher is None or images.shape != teacher.tensors["images"].shape:
                raise ValueError(
                    f"{samples[0]}: cut into other shards than {full_precision[0]}; "
                    "sample both with one evaluation.shards"
                )
            squares += squared_error(images, teacher.tensors["images"])
            values += images.numel()
            first = own.manifest.notes["first"]
            evaluation.take_in(statistics, first, images, extractor)
            if score is not None:
                score.update(first, images, prompts[first : first + len(images)])
            manifests.append(own.manifest)
            teacher_manifests.append(teacher.manifest)
            del own, teacher, images
            progress.update()
    for _ in teachers:  # it refuses images beyond the last
        pass
    estimate = score.compute() if score is not None else None
    return _Gathered(statistics, squares / values, estimate, manifests, teacher_manifests)


def _row(
    dataset: str,
    settings: DatasetSettings,
    manifest: Manifest,
    gathered: _Gathered,
    real: reference.Reference,
    extractor: Extractor,
    device: torch.device,
) -> dict[str, Any]:
    clip = {} if gathered.clip is None else {"clip": gathered.clip.value, "clip_se": gathered.clip.error}
    return {
        "dataset": dataset,
        "method": manifest.notes["method"],
        "bits": manifest.notes["bits"],
        "seed": manifest.seeds["run"],
        "images": gathered.statistics.count,
        **evaluation.numbers(gathered.statistics, real, settings.evaluation, device),
        **clip,
        "psnr": distances.psnr(gathered.mse),
        "mse": gathered.mse,
        **evaluation.provenance(extractor, real, settings.evaluation),
    }


def squared_error(images: Tensor, targets: Tensor) -> float:
    """Sum over all values of the squared difference of uint8 images (n, C, H, W), on the [0, 1] scale."""
    # Exact: integers below 2^16, summed in 64 bits, whatever the order.
    pairs = zip(images.split(_DIFFERENCES), targets.split(_DIFFERENCES), strict=True)
    return sum((a.int() - b).square_().sum().item() for a, b in pairs) / 255**2


def _cell(manifest: Manifest) -> tuple[str, str, int]:
    return manifest.notes["method"], manifest.notes["bits"], manifest.seeds["run"]


def _require_origin(file: Path, manifest: Manifest, expected: dict[str, str]) -> None:
    """The samples must come from the very model and checkpoint whose account goes into the row."""
    found = {name: digest for name, digest in manifest.inputs.items() if name in ("model", "checkpoint")}
    if found != expected:
        raise ValueError(
            f"{file}: drawn from {_short(found)}, but the files given are {_short(expected)}; "
            "sample it again, or name the model and checkpoint it was drawn from"
        )


def _short(digests: dict[str, str]) -> str:
    return ", ".join(f"{name} {digest[:12]}…" for name, digest in digests.items()) or "nothing"


def _natural(file: Path) -> list[Any]:
    """Sort key that puts shard 10 after shard 2."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", file.name)]
