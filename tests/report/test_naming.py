"""Names on the drawn picture: where their boxes really are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from quest.report import drawing, naming
from quest.report.naming import Names, write

CROWD = [(1 + 0.001 * place, 2 + 0.001 * place) for place in range(8)]
SPREAD = [(1.0, 2.0), (4.0, 3.0), (2.0, 1.0)]
TEXTS = [f"EfficientDM W{place}A8" for place in range(8)]


def panel() -> tuple[Figure, Axes]:
    figure = drawing.figure(5, 4, layout="constrained")
    axes = figure.subplots()
    axes.plot([0.5, 5], [0.5, 3.5])
    axes.set_title("a title", loc="left")
    return figure, axes


def boxes(figure: Figure, axes: Axes, dpi: float) -> dict[str, Bbox]:
    """The names as they are drawn at a resolution."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    # Of the letters alone, without the line to the point.
    return {text.get_text(): Text.get_window_extent(text, canvas.get_renderer()) for text in axes.texts}


@pytest.mark.parametrize("dpi", [100, 150, 300])
@pytest.mark.parametrize("points", [CROWD, SPREAD], ids=["crowd", "spread"])
def test_no_name_covers_another_or_leaves_its_panel(points: list[tuple[float, float]], dpi: float):
    figure, axes = panel()
    write(figure, [Names(axes, TEXTS[: len(points)], points)])
    drawn = boxes(figure, axes, dpi)
    assert [*drawn] == TEXTS[: len(points)]
    assert not [pair for pair in itertools.combinations(drawn, 2) if drawn[pair[0]].overlaps(drawn[pair[1]])]
    for box in drawn.values():
        inside = Bbox.intersection(box, axes.bbox)
        assert inside is not None
        assert inside.bounds == pytest.approx(box.bounds, abs=1)


def test_only_a_name_that_stands_off_has_a_line():
    figure, axes = panel()
    write(figure, [Names(axes, TEXTS[:8], CROWD)])
    lines = [isinstance(text, Annotation) and text.arrow_patch is not None for text in axes.texts]
    assert (lines[0], any(lines)) == (False, True)


def test_a_name_avoids_markers_and_lines():
    figure, axes = panel()
    axes.set(xlim=(0, 4), ylim=(0, 4))
    others, bar = [(2.2, 2.1), (2.2, 1.9), (1.8, 2.1)], [(1.2, 1.0), (2.8, 1.0)]
    write(figure, [Names(axes, ["QuEST W4A4"], [(2, 2)], others, [bar])])
    (box,) = boxes(figure, axes, 150).values()
    for point in others:
        assert not box.contains(*axes.transData.transform(point))
    assert not any(box.contains(*axes.transData.transform((x, 1.0))) for x in np.linspace(1.2, 2.8, 50))


@pytest.mark.parametrize(
    ("start", "end", "met"),
    [
        ((0, 5), (20, 5), True),
        ((5, -1e9), (5, 1e9), True),
        ((12, 0), (0, 12), True),
        ((5, 5), (6, 6), True),
        ((11, 0), (11, 10), False),
        ((0, 21), (21, 0), False),
        ((12, 5), (20, 5), False),
    ],
)
def test_a_line_meets_a_box(start: tuple[float, float], end: tuple[float, float], met: bool):
    box = Bbox.from_extents(0, 0, 10, 10)
    assert naming._crosses((np.array(start), np.array(end)), box) == met


def test_a_name_without_room_is_left_out():
    figure, axes = panel()
    write(figure, [Names(axes, ["long " * 60, "QuEST"], [(1, 2), (4, 3)])])
    assert [text.get_text() for text in axes.texts] == ["QuEST"]


def test_the_other_parts_stay_where_they_were():
    figure, axes = panel()
    figure.draw_without_rendering()
    before = axes.get_position().bounds
    write(figure, [Names(axes, TEXTS, CROWD)])
    figure.draw_without_rendering()
    assert axes.get_position().bounds == before
