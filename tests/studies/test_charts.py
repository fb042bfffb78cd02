"""Charts of any number of methods, stages and versions."""

from __future__ import annotations

import numpy as np
import pytest

from quest.report import drawing
from quest.studies import charts, distributions, errors, histograms, scales

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


@pytest.mark.parametrize(
    ("name", "shorter"),
    [
        ("up_blocks.1.attentions.0.transformer_blocks.2.attn1.to_out.0", "up1 attn0 block2 attn1 out"),
        ("down_blocks.2.resnets.0.time_emb_proj", "down2 res0 time"),
        ("mid_block.resnets.1.conv_shortcut", "mid res1 shortcut"),
        ("up_blocks.0.upsamplers.0.conv", "up0 up"),
        ("time_embedding.linear_2", "time 2"),
        ("conv_in", "in"),
        ("something.else", "something else"),
    ],
)
def test_names_of_layers_are_short(name: str, shorter: str):
    assert charts.short(name) == shorter


def test_spreads_are_ratios_to_full_precision():
    numbers = {"timestep": 9, "min": -1.0, "max": 1.0, "std": 0.5, "kurtosis": 3.0}
    layers = ["conv_in", *(f"down_blocks.0.resnets.{number}.conv1" for number in range(30)), "conv_out"]
    rows = [
        numbers | {"weights": version, "layer": layer, "max": largest}
        for version, largest in ((distributions.FULL, 1.0), (distributions.FINETUNED, 3.0))
        for layer in layers
    ]
    spread, deviation, _ = distributions.chart("tiny", rows).axes
    assert np.asarray(spread.lines[0].get_ydata()).tolist() == [2.0] * 32
    assert np.asarray(deviation.lines[0].get_ydata()).tolist() == [1.0] * 32
    assert [label.get_text() for label in spread.get_xticklabels()] == ["in", "out"], "down0 is too close to in"


def test_many_lines_are_told_apart():
    lines, curves = drawing.figure(3, 2).subplots(1, 2)
    for index, name in enumerate(NAMES):
        charts.line(lines, index, [(0, 1.0, 0.1)], name)
        charts.curve(curves, index, [0, 1], [1.0, 2.0], name, "-")
    for axes in (lines, curves):
        assert len({(line.get_color(), line.get_marker()) for line in axes.lines if line.get_marker() != "_"}) == 15
