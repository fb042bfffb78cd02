"""How much of the error that rounded weights leave in the predicted noise is one constant a channel.

Activations are in full precision. A constant is what a sampler adds up from step to step: it shifts the brightness or
the colour of every image. What is left of the error differs from place to place and largely averages out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from quest import artifacts
from quest.config.method import Rounding
from quest.config.values import Bits
from quest.learning import finetuning, reconstruction
from quest.quantization.network import QuantizedNetwork
from quest.report import drawing
from quest.studies import Row
from quest.studies.charts import curve, distinct, start_figure, where, with_legend
from quest.studies.subject import Subject

NEAREST = "nearest"


@torch.no_grad()
def measure(subject: Subject) -> list[Row]:
    """A row for each weight bit-width, rounding (nearest, then the groupings of learned rounding) and sampling
    step; errors are in units of the noise, whose standard deviation is 1."""
    states = subject.states()
    at = {step: (states.steps == step).nonzero().flatten() for step in states.steps.unique().tolist()}
    full = subject.quantized(subject.bits, calibrated=False)
    with full.quantizing(weights=False, activations=False):
        targets = {step: finetuning.predict(full, states, chosen) for step, chosen in at.items()}
    rows = []
    for rounding, bits, network in networks(subject):
        with network.frozen(), network.quantizing(weights=True, activations=False):
            for step, chosen in at.items():
                error = finetuning.predict(network, states, chosen) - targets[step]
                timestep = int(states.timesteps[chosen[0]])
                rows.append({"weight_bits": bits, "rounding": rounding, "timestep": timestep, **parts(error)})
    return rows


def networks(subject: Subject) -> Iterator[tuple[str, int, QuantizedNetwork]]:
    """Rounding, weight bits and network: rounded to nearest at the bits of the artifacts, and as each artifact says."""
    files = subject.files["reconstructions"]
    settings = {path: artifacts.load_tensors(path, "reconstruction").manifest.settings for path in files}
    for bits in dict.fromkeys(each["weight_bits"] for each in settings.values()):
        yield NEAREST, bits, subject.quantized(Bits(bits, 8), calibrated=False)
        for path, each in settings.items():
            if each["weight_bits"] == bits:
                network = subject.quantized(Bits(bits, 8), calibrated=False)
                reconstruction.apply(path, network, subject.model, Rounding(each["grouping"], each["policy"]))
                yield each["grouping"], bits, network


def parts(error: Tensor) -> dict[str, float]:
    """Of errors (N, C, ...): root mean square, that of each channel's mean, the largest of these means, and what share
    of the square the means are."""
    constant = error.double().transpose(0, 1).flatten(1).mean(1)
    whole, square = error.double().square().mean(), constant.square().mean()
    return {
        "rms": whole.sqrt().item(),
        "constant_rms": square.sqrt().item(),
        "constant_largest": constant.abs().max().item(),
        "constant_share": (square / whole).item(),
    }


_ROUNDING = {"nearest": "nearest", "blocks": "learned by block", "temporal": "learned, time embedding first"}


def chart(dataset: str, rows: Sequence[Row]) -> Figure:
    """A panel a weight bit-width; over the timesteps, the whole error and its constant part for each rounding."""
    widths = distinct(rows, "weight_bits")
    title = f"{dataset}: error of the predicted noise by rounded weights, and what of it is one constant a channel"
    figure, panels = start_figure(title, 13, 4.6, 1, len(widths))
    for axes, bits in zip(panels, widths, strict=True):
        for index, rounding in enumerate(distinct(rows, "rounding")):
            mine = where(rows, weight_bits=bits, rounding=rounding)
            steps = [row["timestep"] for row in mine]
            for key, line, what in (("rms", "-", "whole"), ("constant_rms", ":", "constant")):
                curve(axes, index, steps, [row[key] for row in mine], f"{_ROUNDING[rounding]}: {what}", line)
        axes.invert_xaxis()
        axes.set_ylim(bottom=0)
        drawing.plain(axes, f"{bits}-bit weights", "timestep, noisiest first", "root mean square (the noise has 1) ↓")
    return with_legend(figure, panels[0], columns=3)
