"""What the charts of the studies share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from quest.report import drawing
from quest.report.drawing import INK
from quest.studies import Row


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


def logarithmic(axes: Axes) -> None:
    """A logarithmic axis whose ticks are plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter())


def distinct(rows: Sequence[Row], key: str) -> list[Any]:
    """Values of ``key`` in the order of the rows."""
    return list(dict.fromkeys(row[key] for row in rows))


def where(rows: Sequence[Row], **values: Any) -> list[Row]:
    return [row for row in rows if all(row[key] == value for key, value in values.items())]
