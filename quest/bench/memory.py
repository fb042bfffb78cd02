"""Peak memory of measuring many images of 256×256: random ones, shard by shard through what `quest measure` runs.

A shard is written as `quest sample` writes it, read and checked twice, as the cell's and as full precision's, and
deleted: the disk holds one. All metrics are computed in the end. The extractor is a random one of Inception's widths,
so the network's own memory is not in the number; on a CPU everything else is, the libraries included.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from quest.artifacts import Manifest, load_tensors, save_tensors
from quest.bench import measuring
from quest.config.evaluation import EvaluationSettings
from quest.metrics import evaluation, measure, reference
from quest.metrics.extractor import Extractor, Features
from quest.metrics.reference import MANIFOLD_IMAGES
from quest.metrics.statistics import Accumulator

log = logging.getLogger(__name__)

SIZE = 256
WIDTHS = (2048, 2023, 1008)  # of Inception's pooled and spatial features and logits
_POOL = 16


class RandomFeatures(Extractor):
    """Rectified random projections of an image's means over squares of 16×16, of Inception's widths."""

    name, sha256, resize, channels, batch_size = "random", "0" * 64, "none", 3, 64

    def __init__(self, device: torch.device | str):
        self.device = device
        inputs = 3 * (SIZE // _POOL) ** 2
        generator = torch.Generator().manual_seed(0)
        self._projection = (torch.randn(inputs, sum(WIDTHS), generator=generator) / inputs**0.5).to(device)

    def _forward(self, images: Tensor) -> Features:
        # Means of random bytes deviate by 74 / 16 from 127.5.
        means = (avg_pool2d(images.float(), _POOL).flatten(1) - 127.5) * _POOL / 74
        return Features(*(means @ self._projection).relu().split(WIDTHS, dim=1))


def run(images: int, shard: int, device: torch.device | str) -> str:
    """A text table: seconds and peak memory after each part of measuring ``images``, in shards of ``shard``."""
    from quest.report import text  # needs a package of the workflow, which `quest quantize` goes without

    begin = time.perf_counter()
    rows = [("after", "s", "peak RSS MiB")]

    def note(part: str) -> None:
        rows.append((part, f"{time.perf_counter() - begin:.0f}", f"{measuring.peak_mib('cpu'):,.0f}"))
        log.info("%s: %s s, peak %s MiB", *rows[-1])

    note("start")
    extractor = RandomFeatures(device)
    known = min(images, MANIFOLD_IMAGES)
    real = reference.reduce(_random(known, shard, seed=1), known, extractor, "random")
    note(f"reference of {known:,} images")
    settings = EvaluationSettings(images=images, kid_block_size=min(1_000, known))
    statistics = evaluation.start(settings, images, extractor)
    squares = _gather(statistics, _random(images, shard, seed=0), extractor)
    note(f"{images:,} images of {SIZE}×{SIZE} in shards of {shard:,}")
    found = evaluation.numbers(statistics, real, settings, device)
    note("all metrics")
    numbers = ", ".join(f"{name} {found[name]:.4g}" for name in ("fid", "sfid", "is", "kid", "precision", "recall"))
    return "\n".join([measuring.machine(device), "", text.table(rows), "", f"{numbers}, squared error {squares:g}"])


def _gather(statistics: Accumulator, shards: Iterator[Tensor], extractor: Extractor) -> float:
    """Take in all images as `quest measure` does; returns the squared error between the two readings of them."""
    squares, first = 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "samples.safetensors"
        for made in shards:
            save_tensors(file, {"images": made}, Manifest(kind="samples"))
            del made  # no part of measuring
            own, teacher = (load_tensors(file, "samples").tensors["images"] for _ in range(2))
            squares += sum(measure.squared_errors(own, teacher))
            evaluation.take_in(statistics, first, own, extractor)
            first += len(own)
            del own, teacher  # as `quest measure` does before it reads the next
    return squares


def _random(images: int, shard: int, seed: int) -> Iterator[Tensor]:
    """Random uint8 images (n, 3, SIZE, SIZE), ``shard`` at a time."""
    generator = np.random.default_rng(seed)
    for first in range(0, images, shard):
        shape = min(shard, images - first), 3, SIZE, SIZE
        yield torch.from_numpy(generator.integers(256, size=shape, dtype=np.uint8))
