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

from quest.artifacts import Manifest, TensorArtifact, load_tensors
from quest.config.dataset import DatasetSettings
from quest.config.evaluation import FAKE
from quest.config.values import FULL_PRECISION
from quest.metrics import distances, evaluation, reference
from quest.metrics.extractor import Extractor
from quest.metrics.resampling import Estimate
from quest.metrics.statistics import Accumulator

if TYPE_CHECKING:
    from quest.metrics.clip import ClipScore


_DIFFERENCES = 16  # images whose differences are in memory at once, in four times their bytes


class Gathered(NamedTuple):
    """What remains of a cell's images: statistics, mean squared error of each image to full precision's, CLIP score if
    asked for, manifests."""

    statistics: Accumulator
    errors: list[float]
    clip: Estimate | None
    manifests: list[Manifest]
    teacher_manifests: list[Manifest]

    @property
    def mse(self) -> float:
        return math.fsum(self.errors) / len(self.errors)


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
        if cell(manifest) != cell(first):
            raise ValueError(f"{file}: a shard of {cell(manifest)} among shards of {cell(first)}")
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


def clip_score(settings: DatasetSettings, device: torch.device) -> tuple[ClipScore | None, list[str], dict[str, Any]]:
    """The CLIP score of the protocol, the prompts, and what a row says of both; nothing where it has none."""
    if settings.evaluation.clip is None:
        return None, [], {}
    from quest.metrics import clip

    chosen = settings.evaluation.clip
    prompts, digest = clip.read_prompts(chosen.prompts, settings.evaluation.images)
    score = clip.ClipScore(chosen.model, settings.evaluation.images, device)
    return score, prompts, {"clip_model": chosen.model, "clip_prompts_sha256": digest}


def gather(
    samples: Sequence[Path],
    full_precision: Sequence[Path],
    settings: DatasetSettings,
    extractor: Extractor,
    score: ClipScore | None,
    prompts: list[str],
) -> Gathered:
    statistics = evaluation.start(settings.evaluation, settings.evaluation.images, extractor)
    manifests: list[Manifest] = []
    teacher_manifests: list[Manifest] = []
    errors: list[float] = []
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
            errors += squared_errors(images, teacher.tensors["images"])
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
    return Gathered(statistics, errors, estimate, manifests, teacher_manifests)


def row(
    dataset: str,
    settings: DatasetSettings,
    manifest: Manifest,
    gathered: Gathered,
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


def require_backend(file: Path, manifest: Manifest, settings: DatasetSettings) -> dict[str, str]:
    """What the row says of the backend: nothing where it is the default. Full precision has none; its row names the
    protocol's. Raises ValueError for samples that were drawn through another than the protocol's."""
    expected = settings.evaluation.backend
    found = expected if manifest.notes["method"] == FULL_PRECISION else manifest.settings.get("backend", FAKE)
    if found != expected:
        raise ValueError(
            f"{file}: drawn through the {found} backend, but evaluation.backend is {expected}; sample it again, or "
            "measure under the protocol that it was drawn by"
        )
    return {} if expected == FAKE else {"backend": expected}


def squared_errors(images: Tensor, targets: Tensor) -> list[float]:
    """Mean squared difference of each of the uint8 images (n, C, H, W) from its target, on the [0, 1] scale."""
    # Exact: integers below 2^16, summed in 64 bits, whatever the order.
    pairs = zip(images.split(_DIFFERENCES), targets.split(_DIFFERENCES), strict=True)
    sums = [(a.int() - b).square_().flatten(1).sum(1) for a, b in pairs]
    return (torch.cat(sums).double() / (255**2 * images[0].numel())).tolist()


def cell(manifest: Manifest) -> tuple[str, str, int]:
    return manifest.notes["method"], manifest.notes["bits"], manifest.seeds["run"]


def require_origin(file: Path, manifest: Manifest, expected: dict[str, str]) -> None:
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
