"""Ranges of every layer's output over the sampling steps, in full precision: what activation scales have to hold.

The full-precision part of QuEST's figures 2 and 5, for which no finetuned checkpoint is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from quest.report import drawing
from quest.studies import Row
from quest.studies.charts import curve, distinct, over_layers, short, start_figure, where
from quest.studies.distributions import summary
from quest.studies.subject import Subject, outputs

LAYERS = 5  # whose ranges are drawn by step


def measure(subject: Subject) -> list[Row]:
    """A row for each sampling step and layer."""
    states = subject.states()
    timesteps = dict(zip(states.steps.tolist(), states.timesteps.tolist(), strict=True))
    network = subject.quantized(subject.bits, calibrated=False)
    with network.quantizing(weights=False, activations=False), network.frozen():
        return [
            {"timestep": timesteps[step], "layer": name, **summary(output)}
            for step, found in outputs(network, states)
            for name, output in found.items()
        ]


def chart(dataset: str, rows: Sequence[Row]) -> Figure:
    """The range of each layer's output over the layers in network order, all values and the middle 99.9 % of them; and
    of the layers with the largest range, over the steps."""
    figure, (over, steps) = start_figure(f"{dataset}: ranges of layer outputs in full precision", 13, 4.6, 1, 2)
    layers, timesteps = distinct(rows, "layer"), distinct(rows, "timestep")
    largest = {layer: max(map(_range, where(rows, layer=layer))) for layer in layers}
    middle = [max(row["high_999"] - row["low_999"] for row in where(rows, layer=layer)) for layer in layers]
    for index, (values, label) in enumerate(((largest.values(), "all values"), (middle, "middle 99.9 %"))):
        style = {"color": drawing.colour(index), "marker": drawing.marker(index), "markersize": 3, "linewidth": 0.8}
        over.plot(range(len(layers)), list(values), label=label, **style)
    over.set_yscale("log")
    over.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    over.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    over.yaxis.set_minor_formatter(NullFormatter())
    drawing.plain(over, "Range (largest of the steps)", "layer, from input to output", "largest minus smallest value")
    over_layers(over, layers)
    for index, layer in enumerate(sorted(layers, key=largest.__getitem__, reverse=True)[:LAYERS]):
        values = [_range(row) for row in where(rows, layer=layer)]
        curve(steps, index, timesteps, values, short(layer), drawing.dashes(index))
    steps.invert_xaxis()
    drawing.plain(steps, f"The {LAYERS} widest layers by step", "timestep, from noise to image", "")
    steps.set_ylim(bottom=0)
    for axes in (over, steps):
        axes.legend(frameon=False, fontsize=8)
    return figure


def _range(row: Row) -> float:
    return row["max"] - row["min"]
