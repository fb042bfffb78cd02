"""Histograms of the layer outputs that have the largest range, before and after finetuning (QuEST, Fig. 2 and 5).

The versions of the weights are those of `quest.studies.distributions`; values of all observed steps are pooled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from quest.learning.calibration import Samples
from quest.quantization.network import QuantizedNetwork
from quest.report import drawing
from quest.studies import Row
from quest.studies.charts import distinct, short, start_figure, where, with_legend
from quest.studies.distributions import FULL, versions
from quest.studies.subject import Subject, outputs

LAYERS = 3
BINS = 200


def measure(subject: Subject) -> list[Row]:
    """A row for each layer and bin: its edges, and how many values of each version of the weights it holds."""
    states = subject.states()
    names: list[str] = []
    pooled: dict[str, dict[str, Tensor]] = {}
    for version, network in versions(subject):
        if version == FULL:
            names = widest(network, states)
        found = [output for _step, output in outputs(network, states, names)]
        pooled[version] = {name: torch.cat([output[name].flatten() for output in found]).cpu() for name in names}
    rows = []
    for name in names:
        every = [values[name] for values in pooled.values()]
        edges = torch.linspace(
            min(x.min().item() for x in every), max(x.max().item() for x in every), BINS + 1, dtype=torch.float64
        )
        counts = {
            version: torch.histogram(values[name].double(), edges).hist.long().tolist()
            for version, values in pooled.items()
        }
        rows += [
            {"layer": name, "low": low, "high": high, **dict(zip(counts, held, strict=True))}
            for low, high, held in zip(
                edges[:-1].tolist(), edges[1:].tolist(), zip(*counts.values(), strict=True), strict=True
            )
        ]
    return rows


def widest(network: QuantizedNetwork, states: Samples) -> list[str]:
    """The layers whose outputs have the largest range at any step, the largest first."""
    ranges: dict[str, float] = {}
    for _step, found in outputs(network, states):
        for name, output in found.items():
            ranges[name] = max(ranges.get(name, 0.0), (output.max() - output.min()).item())
    return sorted(ranges, key=ranges.__getitem__, reverse=True)[:LAYERS]


def chart(dataset: str, rows: Sequence[Row]) -> Figure:
    """A panel a layer, counts on a logarithmic axis."""
    layers = distinct(rows, "layer")
    title = f"{dataset}: outputs of the {len(layers)} layers with the largest range, by version of the weights"
    figure, panels = start_figure(title, 13, 4.2, 1, len(layers))
    for axes, layer in zip(panels, layers, strict=True):
        bins = where(rows, layer=layer)
        middles = [(row["low"] + row["high"]) / 2 for row in bins]
        for index, version in enumerate(key for key in bins[0] if key not in ("layer", "low", "high")):
            counts = [row[version] or np.nan for row in bins]
            axes.plot(middles, counts, drawing.dashes(index), color=drawing.colour(index), linewidth=1, label=version)
        axes.set_yscale("log")
        drawing.plain(axes, short(layer), "output (no unit)", f"values in each of {len(bins)} bins")
    return with_legend(figure, panels[0])
