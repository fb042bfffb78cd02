"""Names beside the points of a chart, none over another.

Each name takes the nearest of a few places around its point that is inside the axes and free of other names; where
several are, the one that covers the least of what is drawn there. A name that stands off has a thin line to its point.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from quest.report.drawing import INK

Point = tuple[float, float]
Stroke = tuple[np.ndarray, np.ndarray]

_DISTANCES = (8, 14, 22, 32, 44, 58, 74, 92, 112)  # points between a name and its point
_ANGLES = (30, 330, 150, 210, 90, 270, 60, 300, 120, 240, 0, 180)  # degrees; earlier ones are taken first
_LINE_FROM = 10  # points: nearer names need no line
_PAD = 1.5  # points kept free around a name, also for the rounding of another resolution
_MARKER = 4.0  # points from a marker's middle to its side
_ON_MARKER, _ON_NAME, _ON_LINE = 40.0, 60.0, 10.0  # what covering costs, in points of distance
_NEAR_ANOTHER = 12.0  # what standing nearer to another point than to its own does


class Names(NamedTuple):
    """What is to be written into one panel. points: of its names, in data. drawn: the points of all that is drawn
    there. lines: through the points given, in data."""

    axes: Axes
    texts: Sequence[str]
    points: Sequence[Point]
    drawn: Sequence[Point] = ()
    lines: Sequence[Sequence[Point]] = ()


def write(figure: Figure, panels: Iterable[Names], size: float = 7) -> None:
    """Write the names of ``panels`` into ``figure``, whose other parts stay where they are from now on.

    A name for which there is no room is left out. Last of all, for it is the final places that count.
    """
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for panel in panels:
        _write(panel, canvas, size)


def _write(panel: Names, canvas: FigureCanvasAgg, size: float) -> None:
    pixels = canvas.figure.dpi / 72  # of a point
    axes, to_pixels = panel.axes, panel.axes.transData.transform
    markers = [to_pixels(point) for point in (*panel.drawn, *panel.points)]
    covered = [_around(spot, _MARKER * pixels) for spot in markers]
    strokes = [stroke for line in panel.lines for stroke in itertools.pairwise([to_pixels(point) for point in line])]
    boxes: list[Bbox] = []
    leaders: list[Stroke] = []
    for text, point in zip(panel.texts, panel.points, strict=True):
        spot, extent = to_pixels(point), _extent(axes, text, size, canvas)
        best, least = None, math.inf
        for shift in _shifts():
            leader = (spot, spot + shift * pixels)
            box = _box(leader[1], shift, extent)
            if not _inside(box, axes.bbox) or any(box.padded(_PAD * pixels).overlaps(other) for other in boxes):
                continue
            cost = math.hypot(*shift)
            cost += _NEAR_ANOTHER * any(_apart(box, other) < _apart(box, spot) - 1 for other in markers)
            cost += _ON_MARKER * sum(box.overlaps(marker) for marker in covered)
            cost += _ON_NAME * sum(_crosses(leader, other) for other in boxes)
            cost += _ON_NAME * sum(_crosses(other, box) for other in leaders)
            cost += _ON_LINE * sum(_crosses(stroke, box) for stroke in strokes)
            if cost < least:
                best, least = (shift, box, leader), cost
        if best is not None:
            shift, box, leader = best
            far = math.hypot(*shift) > _LINE_FROM
            boxes.append(box)
            leaders += [leader] if far else []
            _annotate(axes, text, point, shift, size, far)


def _annotate(axes: Axes, text: str, point: Point, shift: np.ndarray, size: float, far: bool) -> None:
    side, edge = (0.5 if not part else 0 if part > 0 else 1 for part in shift)  # of the name, where its place is
    aligned: Any = {"ha": ("left", "center", "right")[int(2 * side)], "va": ("bottom", "center", "top")[int(2 * edge)]}
    line = {"arrowstyle": "-", "color": INK, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0, "relpos": (side, edge)}
    style: Any = {"textcoords": "offset points", "size": size, "color": INK, "in_layout": False}
    axes.annotate(text, point, (shift[0], shift[1]), arrowprops=line if far else None, **aligned, **style)


def _extent(axes: Axes, text: str, size: float, canvas: FigureCanvasAgg) -> Bbox:
    """The room that a name takes."""
    name = axes.text(0, 0, text, size=size)
    extent = name.get_window_extent(canvas.get_renderer())
    name.remove()
    return extent


def _shifts() -> Iterator[np.ndarray]:
    """Where a name may stand, in points from its point."""
    for distance, degrees in itertools.product(_DISTANCES, _ANGLES):
        angle = math.radians(degrees)
        yield np.round([distance * math.cos(angle), distance * math.sin(angle)], 3)


def _box(place: np.ndarray, shift: np.ndarray, extent: Bbox) -> Bbox:
    """Of a name at ``place``, which lies ``shift`` from its point."""
    left = place[0] - extent.width * (0.5 if not shift[0] else 0 if shift[0] > 0 else 1)
    bottom = place[1] - extent.height * (0.5 if not shift[1] else 0 if shift[1] > 0 else 1)
    return Bbox.from_bounds(left, bottom, extent.width, extent.height)


def _apart(box: Bbox, spot: np.ndarray) -> float:
    """The distance of a box from a spot."""
    across = max(box.x0 - spot[0], 0, spot[0] - box.x1)
    return math.hypot(across, max(box.y0 - spot[1], 0, spot[1] - box.y1))


def _around(spot: np.ndarray, half: float) -> Bbox:
    return Bbox.from_bounds(spot[0] - half, spot[1] - half, 2 * half, 2 * half)


def _inside(box: Bbox, whole: Bbox) -> bool:
    return whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1


def _crosses(stroke: Stroke, box: Bbox) -> bool:
    """Whether a straight line meets a box: the parts of it that lie between the box's sides overlap."""
    first, last = 0.0, 1.0
    for start, end, low, high in zip(*stroke, box.min, box.max, strict=True):
        if start == end:
            if not low <= start <= high:
                return False
        else:
            entry, leave = sorted(((low - start) / (end - start), (high - start) / (end - start)))
            first, last = max(first, entry), min(last, leave)
    return first <= last
