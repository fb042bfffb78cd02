"""Pictures of a dataset: the same seeds under every cell, and metrics by bit-width. Equal inputs give equal bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from quest.artifacts import TensorArtifact
from quest.config.values import FULL_PRECISION
from quest.report import drawing, tables
from quest.report.drawing import DPI, INK

COLUMNS = 16  # images in a row of the grid


def sample_grid(dataset: str, previews: Sequence[TensorArtifact]) -> Figure:
    """A row of images for each of ``previews`` (kind "preview"), full precision first; a column is one seed's image."""
    previews = sorted(previews, key=lambda preview: tables.order(preview.manifest.notes))
    starts = {(preview.manifest.seeds["run"], preview.manifest.notes["first"]) for preview in previews}
    if len(starts) > 1:
        raise ValueError(f"a grid needs the same images of every cell; found (seed, first image) {sorted(starts)}")
    seed, first = starts.pop()
    columns = min(COLUMNS, *(len(preview.tensors["images"]) for preview in previews))
    strips = [drawing.strip(preview.tensors["images"][:columns].numpy()) for preview in previews]
    names = [tables.label(preview.manifest.notes["method"], preview.manifest.notes["bits"]) for preview in previews]

    height, width = strips[0].shape[:2]
    left, top, margin, gap = 24 + 14 * max(map(len, names)), 64, 16, 8
    size = left + width + margin, top + len(strips) * (height + gap) - gap + margin
    figure = drawing.figure(size[0] / DPI, size[1] / DPI)
    figure.text(
        left / size[0],
        1 - 0.45 * top / size[1],
        f"{dataset}: images {first}–{first + columns - 1} of seed {seed}, the same noise in each column",
        size=10,
        color=INK,
        va="center",
    )
    for row, (name, strip) in enumerate(zip(names, strips, strict=True)):
        bottom = size[1] - top - row * (height + gap) - height
        figure.figimage(strip, left, bottom, origin="upper")  # pixel for pixel, never resampled
        figure.text(
            (left - 14) / size[0], (bottom + height / 2) / size[1], name, size=10, color=INK, ha="right", va="center"
        )
    return figure


def comparison_chart(dataset: str, summary: Sequence[dict[str, Any]]) -> Figure:
    """FID, and PSNR to full precision, by bit-width: a line a method, bars for the spread over seeds."""
    quantized = [row for row in summary if row["method"] != FULL_PRECISION]
    bits = list(dict.fromkeys(row["bits"] for row in quantized))
    methods = list(dict.fromkeys(row["method"] for row in quantized))
    figure = drawing.figure(9, 3.8, layout="constrained")
    fid, psnr = figure.subplots(1, 2)
    for index, method in enumerate(methods):
        rows = {row["bits"]: row for row in quantized if row["method"] == method}
        # So that error bars do not cover each other.
        shift = (index - (len(methods) - 1) / 2) * min(0.08, 0.25 / len(methods))
        for axes, metric in ((fid, "fid"), (psnr, "psnr")):
            places = [place for place, width in enumerate(bits) if rows.get(width, {}).get(metric) is not None]
            shown = [rows[bits[place]] for place in places]
            spreads = [row[f"{metric}_spread"] for row in shown]
            axes.errorbar(
                [place + shift for place in places],
                [row[metric] for row in shown],
                yerr=[spread or 0.0 for spread in spreads] if any(spreads) else None,
                color=drawing.colour(index),
                marker=drawing.marker(index),
                markersize=6,
                linewidth=1.8,
                capsize=3,
                label=tables.title(method),
            )
    for row in summary:
        if row["method"] == FULL_PRECISION and row.get("fid") is not None:
            value, spread = row["fid"], row["fid_spread"]
            fid.axhline(value, color=INK, linestyle="--", linewidth=1.2, label=tables.title(FULL_PRECISION))
            if spread is not None:
                fid.axhspan(value - spread, value + spread, color=INK, alpha=0.12, lw=0)
    for axes, name in ((fid, "FID ↓"), (psnr, "PSNR to full precision (dB) ↑")):
        drawing.plain(axes, name)
        axes.set_xticks(range(len(bits)), [b.upper() for b in bits])
        axes.set_xlim(-0.4, len(bits) - 0.6)
    _scale(fid, [row["fid"] for row in summary if row.get("fid") is not None])
    figure.suptitle(f"{dataset}: quality by bit-width", x=0.01, ha="left", size=12, color=INK)
    handles, labels = fid.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
    return figure


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """Logarithmic from a factor of ten on, with plain numbers at the ticks; linear from 0 otherwise."""
    if values and min(values) > 0 and max(values) / min(values) > 10:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)
