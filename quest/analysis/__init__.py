"""The paper's studies of a model and what quantization does to it, one file each, registered by the file's name.

A study is a function ``measure(subject) -> rows``: plain numbers, a dict a row. Its chart is drawn apart, from the rows
alone, by the function of its name in `quest.analysis.charts`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from quest.config import DatasetSettings

Row = dict[str, Any]
"""Numbers by name; what begins with an underscore is for the chart alone."""


class Study(NamedTuple):
    """title: one line for the command's help. files: what it reads, by the names of its options; the files of
    ``reconstructions``, ``checkpoints`` and ``samples`` are many. sections: the settings that it depends on.
    weight_bits: of its reconstruction, where they are not those that the protocol studies."""

    title: str
    files: tuple[str, ...]
    sections: tuple[str, ...]
    weight_bits: int | None = None


STUDIES = {
    "distributions": Study(
        "Spread of every layer's output before and after finetuning.",
        ("model", "reconstruction", "checkpoint"),
        ("sampler", "condition", "quantizer", "analysis"),
    ),
    "histograms": Study(
        "Histograms of the layer outputs with the largest range, before and after finetuning.",
        ("model", "reconstruction", "checkpoint"),
        ("sampler", "condition", "quantizer", "analysis"),
    ),
    "sensitivity": Study(
        "Closeness of samples when one family of layers has fewer activation bits.",
        ("model", "calibration", "reconstruction"),
        ("sampler", "condition", "calibration", "quantizer", "methods.quest", "evaluation.batch_size", "analysis"),
        weight_bits=8,
    ),
    "tokens": Study(
        "Closeness of samples when a few tokens of an attention block are overwritten.",
        ("model",),
        ("sampler", "condition", "evaluation.batch_size", "analysis"),
    ),
    "samples": Study("Samples on the same seeds, methods by bit-widths.", ("samples",), ()),
    "scales": Study(
        "How activation scales change over the sampling steps.", ("model", "checkpoints"), ("sampler", "analysis")
    ),
    "errors": Study(
        "Error of every layer's output after each stage of the method.",
        ("model", "calibration", "reconstruction", "checkpoint"),
        ("sampler", "condition", "calibration", "quantizer", "methods.quest", "analysis"),
    ),
    "offsets": Study(
        "How much of the error that rounded weights leave is one constant a channel.",
        ("model", "reconstructions"),
        ("sampler", "condition", "quantizer", "analysis"),
    ),
    "expansion": Study(
        "Theorem 3.2 in numbers: the loss along a quantization perturbation, and its expansions.",
        ("model", "calibration", "reconstruction", "checkpoint"),
        ("sampler", "condition", "calibration", "quantizer", "methods.quest", "analysis"),
    ),
}


class Outputs(NamedTuple):
    """The files of a study: its rows, and its chart twice."""

    csv: Path
    png: Path
    svg: Path


def run(
    study: str,
    dataset: str,
    settings: DatasetSettings,
    files: Mapping[str, Sequence[Path]],
    seed: int,
    outputs: Outputs,
    device: str,
) -> None:
    """The `analyse` stage. Nothing is written before all of it is computed."""
    import pandas as pd

    from quest import drawing
    from quest.analysis import charts
    from quest.analysis.subject import Subject
    from quest.artifacts import write_bytes
    from quest.device import resolve

    rows = importlib.import_module(f"quest.analysis.{study}").measure(Subject(settings, files, seed, resolve(device)))
    chart = getattr(charts, study)(dataset, rows)
    table = pd.DataFrame([{k: v for k, v in row.items() if not k.startswith("_")} for row in rows])
    write_bytes(outputs.csv, table.to_csv(index=False, lineterminator="\n", float_format="%.4g").encode())
    drawing.save(chart, outputs.png, small=True)
    drawing.save(chart, outputs.svg)
