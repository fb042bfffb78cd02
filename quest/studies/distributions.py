"""Spread of every layer's output before and after finetuning (QuEST, Fig. 2 and 5).

The paper looks at finetuned weights as a full-precision network of their own. A checkpoint keeps the codes of weights,
not the weights that were trained, so "finetuned" here has its weights on their grid; "reconstructed", on the same grid
before anything was finetuned, tells rounding from finetuning. Activations are in full precision in all three, and all
are given the same inputs, states of the full-precision sampler.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from quest.quantization.network import QuantizedNetwork
from quest.report import drawing
from quest.report.drawing import INK
from quest.studies import Row
from quest.studies.charts import distinct, over_layers, start_figure, where, with_legend
from quest.studies.subject import Subject, outputs

FULL, RECONSTRUCTED, FINETUNED = "full precision", "reconstructed", "finetuned"


def measure(subject: Subject) -> list[Row]:
    """A row for each version of the weights, sampling step and layer."""
    states = subject.states()
    timesteps = dict(zip(states.steps.tolist(), states.timesteps.tolist(), strict=True))
    return [
        {
            "weights": version,
            "timestep": timesteps[step],
            "layer": name,
            **summary(output),
        }
        for version, network in versions(subject)
        for step, found in outputs(network, states)
        for name, output in found.items()
    ]


def versions(subject: Subject) -> Iterator[tuple[str, QuantizedNetwork]]:
    """The network with each version of the weights in turn, activations in full precision until the next is taken."""
    rounded = bool(subject.files.get("reconstruction"))
    before = (subject.reconstructed if rounded else subject.quantized)(subject.bits, calibrated=False)
    for version, network, on_grid in (
        (FULL, before, False),
        *([(RECONSTRUCTED, before, True)] if rounded else []),
        (FINETUNED, subject.checkpoint().network, True),
    ):
        with network.quantizing(weights=on_grid, activations=False), network.frozen():
            yield version, network


def summary(x: Tensor) -> dict[str, float]:
    """Of all values: extremes, mean, standard deviation, kurtosis E(x-μ)⁴/σ⁴ (3 for a normal distribution), and the
    ends of the range that holds the middle 99.9 % of them."""
    x = x.flatten().double()
    centred = x - x.mean()
    variance = centred.square().mean()
    outside = int(0.0005 * (len(x) - 1))
    return {
        "min": x.min().item(),
        "max": x.max().item(),
        "mean": x.mean().item(),
        "std": variance.sqrt().item(),
        "kurtosis": (centred.pow(4).mean() / variance.square()).item() if variance > 0 else float("nan"),
        "low_999": x.kthvalue(outside + 1).values.item(),
        "high_999": x.kthvalue(len(x) - outside).values.item(),
    }


def chart(dataset: str, rows: Sequence[Row]) -> Figure:
    """Range, standard deviation and kurtosis of each layer's output over the layers in network order, each divided by
    what it is in full precision: 1 is no change."""
    figure, panels = start_figure(
        f"{dataset}: spread of every layer's output, relative to full precision", 13, 4.4, 1, 3
    )
    layers = distinct(rows, "layer")
    versions = [version for version in distinct(rows, "weights") if version != FULL]
    for axes, title, value in (
        (panels[0], "Range (largest of the steps)", _range),
        (panels[1], "Standard deviation (mean over steps)", _deviation),
        (panels[2], "Kurtosis (largest of the steps)", _kurtosis),
    ):
        full = [value(where(rows, weights=FULL, layer=layer)) for layer in layers]
        for index, version in enumerate(versions):
            values = [value(where(rows, weights=version, layer=layer)) for layer in layers]
            ratios = [one / of if of else np.nan for one, of in zip(values, full, strict=True)]
            style = {"color": drawing.colour(index), "marker": drawing.marker(index), "markersize": 3}
            axes.plot(range(len(layers)), ratios, linewidth=0.8, label=version, **style)
        axes.axhline(1, color=INK, linewidth=0.8, linestyle=":", label=FULL)
        drawing.plain(axes, title, "layer, from input to output", "ratio to full precision")
        over_layers(axes, layers)
    return with_legend(figure, panels[0])


def _range(rows: Sequence[Row]) -> float:
    return max(row["max"] - row["min"] for row in rows)


def _deviation(rows: Sequence[Row]) -> float:
    return float(np.mean([row["std"] for row in rows]))


def _kurtosis(rows: Sequence[Row]) -> float:
    return max(row["kurtosis"] for row in rows)
