"""Charts of any number of methods, stages and versions."""

from __future__ import annotations

from quest.report import drawing
from quest.studies import charts, errors, histograms, scales

NAMES = [f"quest+{number}" for number in range(15)]


def test_scales_of_many_methods():
    common = {"role": "attention_q", "bits": "w4a4", "sites": 3, "min_ratio": 0.5, "mean_ratio": 1.0, "max_ratio": 2.0}
    times = [{"first_timestep": 900, "last_timestep": 500}, {"first_timestep": 400, "last_timestep": 0}]
    figure = scales.chart("tiny", [{"method": name} | common | time for name in NAMES for time in times])
    assert len(figure.axes[0].lines) == len(NAMES) + 1


def test_errors_of_many_stages():
    rows = [{"stage": name, "layer": "conv", "timestep": step, "error": 0.1} for name in NAMES for step in (9, 1)]
    assert [len(axes.lines) for axes in errors.chart("tiny", rows).axes] == [len(NAMES)] * 2


def test_histograms_of_many_versions():
    rows = [{"layer": "conv", "low": low, "high": low + 1, **dict.fromkeys(NAMES, 3)} for low in range(2)]
    assert len(histograms.chart("tiny", rows).axes[0].lines) == len(NAMES)


def test_many_lines_are_told_apart():
    lines, curves = drawing.figure(3, 2).subplots(1, 2)
    for index, name in enumerate(NAMES):
        charts.line(lines, index, [(0, 1.0, 0.1)], name)
        charts.curve(curves, index, [0, 1], [1.0, 2.0], name, "-")
    for axes in (lines, curves):
        assert len({(line.get_color(), line.get_marker()) for line in axes.lines if line.get_marker() != "_"}) == 15
