"""Samples on the same seeds, methods by bit-widths (QuEST, Fig. 4 and 7–10), with the closeness of each shown image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from quest.artifacts import load_tensors
from quest.config.values import FULL_PRECISION
from quest.metrics.distances import psnr
from quest.report import drawing, tables
from quest.report.drawing import INK
from quest.studies import Row
from quest.studies.charts import distinct, start_figure, where
from quest.studies.subject import Subject

IMAGES = 4  # of each cell


def measure(subject: Subject) -> list[Row]:
    """A row for each cell and shown image; ``_pixels`` holds the image (C, H, W) for the chart.

    Raises ValueError when the previews do not start at the same image of one seed, or full precision is not among them.
    """
    previews = sorted(
        (load_tensors(file, "preview") for file in subject.files["previews"]),
        key=lambda preview: tables.order(preview.manifest.notes),
    )
    starts = {(preview.manifest.seeds["run"], preview.manifest.notes["first"]) for preview in previews}
    if len(starts) > 1:
        raise ValueError(f"a grid needs the same images of every cell; found (seed, first image) {sorted(starts)}")
    if previews[0].manifest.notes["method"] != FULL_PRECISION:
        raise ValueError("a grid needs the preview of full precision; found none among those given")
    seed, first = starts.pop()
    targets = previews[0].tensors["images"]
    rows = []
    for preview in previews:
        images = preview.tensors["images"][:IMAGES]
        for index, image in enumerate(images):
            mse = ((image.double() - targets[index].double()) / 255).square().mean().item()
            rows.append(
                {
                    "method": preview.manifest.notes["method"],
                    "bits": preview.manifest.notes["bits"],
                    "seed": seed,
                    "image": first + index,
                    "mse": mse,
                    "psnr": psnr(mse),
                    "_pixels": image.numpy(),
                }
            )
    return rows


_SHOWN = 48  # pixels of a side of a sample, at most


def chart(dataset: str, rows: Sequence[Row]) -> Figure:
    """A row a method, a column a bit-width; full precision stands above."""
    quantized = [row for row in rows if row["method"] != FULL_PRECISION]
    methods, bits = distinct(quantized, "method"), distinct(quantized, "bits")
    first = rows[0]
    count = len(where(rows, method=first["method"], bits=first["bits"]))
    title = (
        f"{dataset}: images {first['image']}–{first['image'] + count - 1} of seed {first['seed']}, the same noise in "
        "every cell; below each, their mean PSNR to full precision (dB)"
    )
    figure, panels = start_figure(
        title, 3.4 * max(len(bits), 3) + 1, 1.15 * (len(methods) + 1) + 0.6, len(methods) + 1, len(bits)
    )
    for row, method in enumerate((FULL_PRECISION, *methods)):
        for column, width in enumerate(bits):
            axes = panels[row * len(bits) + column]
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            chosen = {"method": method} if method == FULL_PRECISION else {"method": method, "bits": width}
            cell = where(rows, **chosen)
            if column == 0:
                axes.set_ylabel(tables.title(method), rotation=0, ha="right", va="center", color=INK)
            if row == 1:
                axes.set_title(width.upper(), size=10, color=INK)
            if not cell or (row == 0 and column):
                continue
            axes.imshow(drawing.strip(_small(np.stack([r["_pixels"] for r in cell])), _SHOWN), interpolation="none")
            if row and all(r["psnr"] is not None for r in cell):
                axes.set_xlabel(f"{np.mean([r['psnr'] for r in cell]):.1f}", size=8, color=INK)
    return figure


def _small(images: Any) -> Any:
    """Images (N, C, H, W) uint8 with at most `_SHOWN` pixels a side, by means over whole squares."""
    factor = -(-max(images.shape[2:]) // _SHOWN)
    side = [size // factor for size in images.shape[2:]]
    cut = images[:, :, : side[0] * factor, : side[1] * factor]
    means = cut.reshape(*images.shape[:2], side[0], factor, side[1], factor).mean((3, 5))
    return means.round().astype(np.uint8)
