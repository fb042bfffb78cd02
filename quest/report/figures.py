"""Pictures of a dataset: the same seeds under every cell, metrics by bit-width, and quality against size and cost.

Equal inputs give equal bytes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter, ScalarFormatter

from quest.artifacts import TensorArtifact
from quest.config.values import FULL_PRECISION
from quest.report import conditions, drawing, naming, tables
from quest.report.drawing import DPI, INK

COLUMNS = 16  # images in a row of the grid
_WORDS = 12  # characters of a line above a column
QUALITY = (("fid", "FID ↓"), ("psnr", "PSNR to full precision (dB) ↑"))
PRICE = (("weight_mib", "size of the weights (MiB)"), ("gbops", "cost of a call (GBOPs)"))


class _Grid(NamedTuple):
    """Pixels of a grid: its margins and gaps."""

    left: int
    top: int
    right: int
    bottom: int = 16
    gap: int = 8
    heading: int = 34  # above the rows of a bit-width


def sample_grid(dataset: str, previews: Sequence[TensorArtifact], summary: Sequence[dict[str, Any]] = ()) -> Figure:
    """A row of images for each of ``previews`` (kind "preview"), full precision first, then a block a bit-width; a
    column is one noise, below the class or prompt that it was drawn for.

    summary: of the table, whose FID and PSNR stand beside the rows. Raises ValueError for previews of other images.
    """
    previews = sorted(previews, key=lambda preview: tables.order(preview.manifest.notes))
    starts = {(preview.manifest.seeds["run"], preview.manifest.notes["first"]) for preview in previews}
    if len(starts) > 1:
        raise ValueError(f"a grid needs the same images of every cell; found (seed, first image) {sorted(starts)}")
    seed, first = starts.pop()
    columns = min(COLUMNS, *(len(preview.tensors["images"]) for preview in previews))
    strips = [drawing.strip(preview.tensors["images"][:columns].numpy()) for preview in previews]
    cells = [(preview.manifest.notes["method"], preview.manifest.notes["bits"]) for preview in previews]
    numbers = {(row["method"], row["bits"]): _numbers(row) for row in summary}
    condition = previews[0].manifest.settings.get("condition")
    words = conditions.words(dataset, condition, range(first, first + columns)) or []
    above = [textwrap.fill(text, _WORDS) for text in words]

    height, width = strips[0].shape[:2]
    titles = [tables.title(method) for method, _ in cells]
    lines = max((text.count("\n") + 1 for text in above), default=0)
    beside = max((len(line) for text in numbers.values() for line in text.split("\n")), default=0)
    grid = _Grid(left=24 + 14 * max(map(len, titles)), top=64 + 13 * lines, right=16 + 9 * beside)
    blocks = [bits for place, (_, bits) in enumerate(cells) if place and cells[place - 1][1] != bits]
    size = (
        grid.left + width + grid.right,
        grid.top + len(strips) * (height + grid.gap) + len(blocks) * grid.heading + grid.bottom,
    )
    figure = drawing.figure(size[0] / DPI, size[1] / DPI)

    def write(text: str, x: float, y: float, **style: Any) -> None:
        """At pixels from the upper left corner."""
        figure.text(x / size[0], 1 - y / size[1], text, color=INK, **style)

    images = f"images {first}–{first + columns - 1} of seed {seed}"
    write(f"{dataset}: {images}, the same noise in each column", 16, 30, size=10, va="center")
    side = (width + 4) / columns
    for column, text in enumerate(above):
        write(text, grid.left + side * column + (side - 4) / 2, grid.top - 6, size=4.5, ha="center", va="bottom")
    y = grid.top
    for place, ((method, bits), strip) in enumerate(zip(cells, strips, strict=True)):
        if place and cells[place - 1][1] != bits:
            write(bits.upper(), grid.left, y + grid.heading / 2 + 2, size=10, weight="bold", va="center")
            y += grid.heading
        figure.figimage(strip, grid.left, size[1] - y - height, origin="upper")  # pixel for pixel, never resampled
        middle = y + height / 2
        write(titles[place], grid.left - 14, middle, size=10, ha="right", va="center")
        write(numbers.get((method, bits), ""), grid.left + width + 12, middle, size=7, va="center")
        y += height + grid.gap
    return figure


def comparison_chart(dataset: str, summary: Sequence[dict[str, Any]]) -> Figure:
    """FID, and PSNR to full precision, by bit-width: a line a method, bars for the spread over seeds."""
    quantized = [row for row in summary if row["method"] != FULL_PRECISION]
    bits = list(dict.fromkeys(row["bits"] for row in quantized))
    methods = list(dict.fromkeys(row["method"] for row in quantized))
    styles = drawing.method_styles(methods)
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
                markersize=6,
                linewidth=1.8,
                capsize=3,
                label=tables.title(method),
                **styles[method],
            )
    for row in summary:
        if row["method"] == FULL_PRECISION and row.get("fid") is not None:
            value, spread = row["fid"], row["fid_spread"]
            fid.axhline(value, color=INK, linestyle="--", linewidth=1.2, label=tables.title(FULL_PRECISION))
            if spread is not None:
                fid.axhspan(value - spread, value + spread, color=INK, alpha=0.12, lw=0)
    for axes, (_, name) in zip((fid, psnr), QUALITY, strict=True):
        drawing.plain(axes, name)
        axes.set_xticks(range(len(bits)), [b.upper() for b in bits])
        axes.set_xlim(-0.4, len(bits) - 0.6)
    _scale(fid, [row["fid"] for row in summary if row.get("fid") is not None])
    figure.suptitle(f"{dataset}: quality by bit-width", x=0.01, ha="left", size=12, color=INK)
    _legend(figure, fid)
    return figure


def tradeoff_chart(dataset: str, summary: Sequence[dict[str, Any]]) -> Figure:
    """Quality against size and against cost: a point a cell, bars for the spread over seeds. A line joins the cells
    that no smaller (cheaper) one is as good as, by their means; their names stand beside them."""
    methods = list(dict.fromkeys(row["method"] for row in summary))
    styles = drawing.method_styles(methods)
    figure = drawing.figure(9.5, 7, layout="constrained")
    panels = figure.subplots(2, 2, sharex="col", sharey="row")
    names = []
    for line, (metric, name) in enumerate(QUALITY):
        for axes, (price, what) in zip(panels[line], PRICE, strict=True):
            shown = [row for row in summary if row.get(metric) is not None and row.get(price) is not None]
            for row in shown:
                style = styles[row["method"]] | {"linestyle": "none"}
                if row["method"] == FULL_PRECISION:
                    style["marker"] = "*"
                error, label = row[f"{metric}_spread"] or None, tables.title(row["method"])
                axes.errorbar(row[price], row[metric], yerr=error, markersize=7, capsize=3, label=label, **style)
            best = front([(row[price], row[metric] if metric == "fid" else -row[metric]) for row in shown])
            places = [(shown[index][price], shown[index][metric]) for index in best]
            axes.plot(*zip(*places, strict=True) if places else ((), ()), color=INK, linewidth=1, alpha=0.5, zorder=0)
            texts = [tables.label(shown[index]["method"], shown[index]["bits"]) for index in best]
            drawn = [(row[price], row[metric]) for row in shown]
            spreads = [row[f"{metric}_spread"] or 0.0 for row in shown]
            bars = [[(x, y - spread), (x, y + spread)] for (x, y), spread in zip(drawn, spreads, strict=True)]
            names.append(naming.Names(axes, texts, places, drawn, [places, *bars]))
            drawing.plain(axes, name)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.margins(x=0.15)
            axes.set_xlabel(what if line else "", color=INK)
    _scale(panels[0][0], [row["fid"] for row in summary if row.get("fid") is not None])
    title = f"{dataset}: which method at which size; the line joins what nothing smaller is as good as"
    figure.suptitle(title, x=0.01, ha="left", size=12, color=INK)
    _legend(figure, panels[0][0])
    naming.write(figure, names)
    return figure


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (price, loss) that none of a lower or equal price and loss beats, by their price."""
    best, found = float("inf"), []
    for index in sorted(range(len(points)), key=lambda index: points[index]):
        if points[index][1] < best:
            best = points[index][1]
            found.append(index)
    return found


def _numbers(row: dict[str, Any]) -> str:
    """FID and PSNR beside a row of images."""
    columns = {column.key: column for column in tables.COLUMNS}
    written = {key: tables.written(row, columns[key]) for key in ("fid", "psnr")}
    lines = {"fid": f"FID {written['fid']}", "psnr": f"{written['psnr']} dB"}
    return "\n".join(line for key, line in lines.items() if written[key] != tables.MISSING)


def _legend(figure: Figure, axes: Axes) -> None:
    """Below the panels, each name once."""
    names = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(names.values(), names.keys(), loc="outside lower center", ncols=min(4, len(names)), frameon=False)


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """Logarithmic from a factor of ten on, with plain numbers at the ticks; linear from 0 otherwise."""
    if values and min(values) > 0 and max(values) / min(values) > 10:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)
