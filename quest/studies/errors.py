"""Error of every layer's output after each stage of QuEST: nearest rounding, reconstruction, TLA, CMA.

All stages have the same activation sets and are measured on the same inputs, which nothing was trained on. No network
is stored between TLA and CMA, so TLA is run again here with the protocol's settings and the run's seed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from quest.methods import quest as method
from quest.quantization.network import QuantizedNetwork
from quest.report import drawing
from quest.studies import Row
from quest.studies.charts import distinct, over_layers, start_figure, where, with_legend
from quest.studies.subject import Subject, outputs

STAGES = ("nearest", "reconstruction", "TLA", "CMA")


def measure(subject: Subject) -> list[Row]:
    """A row for each stage, sampling step and layer: ‖Ô - O‖² / ‖O‖², O being the output in full precision."""
    states = subject.states()
    full = subject.quantized(subject.bits, calibrated=False)
    with full.quantizing(weights=False, activations=False):
        targets = dict(outputs(full, states))
    timesteps = dict(zip(states.steps.tolist(), states.timesteps.tolist(), strict=True))
    rows = []
    for stage, network in networks(subject):
        with network.frozen():
            for step, found in outputs(network, states):
                rows += [
                    {
                        "stage": stage,
                        "timestep": timesteps[step],
                        "layer": name,
                        "error": ((output - targets[step][name]).square().sum() / targets[step][name].square().sum())
                        .double()
                        .item(),
                    }
                    for name, output in found.items()
                ]
    return rows


def networks(subject: Subject) -> Iterator[tuple[str, QuantizedNetwork]]:
    """Each of `STAGES` in turn; the third is the second network, trained on."""
    settings = subject.settings.methods.quest
    yield STAGES[0], subject.quantized(subject.bits, settings.sets)
    network = subject.reconstructed(subject.bits, settings.sets)
    yield STAGES[1], network
    stage = method.time_embedding_alignment(network, settings)
    method.train(network, copy.deepcopy(network), subject.calibration, stage, settings, subject.seed)
    yield STAGES[2], network
    checkpoint = subject.checkpoint()
    if checkpoint.method != "quest":
        raise ValueError(f"{subject.files['checkpoint'][0]}: made by {checkpoint.method}; expected quest's")
    yield STAGES[3], checkpoint.network


def chart(dataset: str, rows: Sequence[Row]) -> Figure:
    """Each layer's error over the layers, and the median layer's over the timesteps; a line a stage."""
    title = f"{dataset}: error of every layer's output against full precision after each stage"
    figure, (of_layers, of_steps) = start_figure(title, 13, 4.6, 1, 2)
    layers, steps = distinct(rows, "layer"), distinct(rows, "timestep")
    for index, stage in enumerate(distinct(rows, "stage")):
        style: dict[str, Any] = {"color": drawing.colour(index), "linestyle": drawing.dashes(index), "label": stage}
        mean = [np.mean([row["error"] for row in where(rows, stage=stage, layer=layer)]) for layer in layers]
        of_layers.plot(range(len(layers)), mean, linewidth=1, **style)
        median = [np.median([row["error"] for row in where(rows, stage=stage, timestep=step)]) for step in steps]
        of_steps.plot(steps, median, **style)
    for axes in (of_layers, of_steps):
        axes.set_yscale("log")
    of_steps.invert_xaxis()
    over_layers(of_layers, layers)
    relative = "relative squared error ↓"
    drawing.plain(of_layers, "Mean over steps, by layer", "layer, from input to output", relative)
    drawing.plain(of_steps, "Median layer, by timestep", "timestep, noisiest first", relative)
    return with_legend(figure, of_layers)
