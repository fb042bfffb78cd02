"""What the charts of the studies share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quest.report import drawing
from quest.report.drawing import INK
from quest.studies import Row

_SHORT = (
    (r"\b(down|up)_blocks\.(\d+)", r"\1\2"),
    (r"\bmid_block\b", "mid"),
    (r"\bresnets\.(\d+)", r"res\1"),
    (r"\battentions\.(\d+)", r"attn\1"),
    (r"\btransformer_blocks\.(\d+)", r"block\1"),
    (r"\b(down|up)samplers\.0\.conv\b", r"\1"),
    (r"\btime_embedding\.linear_(\d)", r"time.\1"),
    (r"\btime_emb_proj\b", "time"),
    (r"\bconv_(in|out|shortcut)\b", r"\1"),
    (r"\bto_(q|k|v)\b", r"\1"),
    (r"\bto_out\.0\b", "out"),
)
"""What names of layers are shortened to, so that a chart has room for them."""


def short(name: str) -> str:
    """The name of a layer or block as a chart writes it: "up1 attn0 q"."""
    for pattern, shorter in _SHORT:
        name = re.sub(pattern, shorter, name)
    return name.replace(".", " ")


def over_layers(axes: Axes, layers: Sequence[str]) -> None:
    """An axis over ``layers`` in network order, marked where the blocks of the network begin; of those that begin too
    close to each other to be read, the first."""
    blocks = [short(layer).split()[0] for layer in layers]
    starts: list[int] = []
    for place, block in enumerate(blocks):
        begins = place == 0 or blocks[place - 1] != block
        if begins and (not starts or place - starts[-1] > len(layers) / 20):
            starts.append(place)
    axes.set_xticks(starts, [blocks[place] for place in starts], rotation=45, ha="right", size=8)
    axes.set_xlim(-0.5, len(layers) - 0.5)


def start_figure(
    title: str, width: float, height: float, rows: int, columns: int, **shared: Any
) -> tuple[Figure, list[Axes]]:
    """A figure under ``title`` with its panels, row by row."""
    made = drawing.figure(width, height, layout="constrained")
    made.suptitle(title, x=0.01, ha="left", size=12, color=INK)
    return made, list(made.subplots(rows, columns, squeeze=False, **shared).flat)


def with_legend(figure: Figure, axes: Axes, columns: int = 4) -> Figure:
    """Below the panels, for all of them."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)), frameon=False)
    return figure


def line(axes: Axes, index: int, points: Iterable[tuple[float, float | None, float | None]], label: str) -> None:
    """(place, value, error) as a line with bars; what has no value is left out."""
    shown = [(place, value, error or 0.0) for place, value, error in points if value is not None]
    places, values, bars = zip(*shown, strict=True) if shown else ((), (), ())
    axes.errorbar(
        places,
        values,
        yerr=bars,
        color=drawing.colour(index),
        marker=drawing.marker(index),
        markersize=5,
        capsize=3,
        label=label,
    )


def curve(axes: Axes, index: int, x: Sequence[int], y: Sequence[float], label: str, line: str) -> None:
    axes.plot(x, y, line, color=drawing.colour(index), marker=drawing.marker(index), markersize=4, label=label)


def distinct(rows: Sequence[Row], key: str) -> list[Any]:
    """Values of ``key`` in the order of the rows."""
    return list(dict.fromkeys(row[key] for row in rows))


def where(rows: Sequence[Row], **values: Any) -> list[Row]:
    return [row for row in rows if all(row[key] == value for key, value in values.items())]
