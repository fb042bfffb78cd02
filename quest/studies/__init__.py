"""The paper's studies of a model and what quantization does to it, one file each, registered by the file's name.

A study is ``measure(subject) -> rows``, plain numbers, a dict a row; and ``chart(dataset, rows)``, drawn from the rows
alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from quest.studies.subject import Subject

Row = dict[str, Any]
"""Numbers by name; what begins with an underscore is for the chart alone."""


class Study(NamedTuple):
    """title: one line for the command's help. files: what it reads, by the names of its options; the files of
    ``reconstructions``, ``checkpoints`` and ``previews`` are many. sections: the settings that it depends on.
    weight_bits: of its reconstruction, where they are not those that the protocol studies. spared: what it reads of
    these files where they are given, and shows less without. by_name: made only where its file is asked for, since it
    takes hours on a CPU."""

    title: str
    files: tuple[str, ...]
    sections: tuple[str, ...]
    weight_bits: int | None = None
    spared: tuple[str, ...] = ()
    by_name: bool = False


STUDIES = {
    "distributions": Study(
        "Spread of every layer's output before and after finetuning.",
        ("model", "reconstruction", "checkpoint"),
        ("sampler", "condition", "quantizer", "analysis"),
        spared=("reconstruction",),
    ),
    "histograms": Study(
        "Histograms of the layer outputs with the largest range, before and after finetuning.",
        ("model", "reconstruction", "checkpoint"),
        ("sampler", "condition", "quantizer", "analysis"),
        spared=("reconstruction",),
    ),
    "ranges": Study(
        "Ranges of every layer's output over the sampling steps, in full precision.",
        ("model",),
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
    "samples": Study("Samples on the same seeds, methods by bit-widths.", ("previews",), ()),
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
    "convergence": Study(
        "Loss of every unit's learned rounding, as the protocol says and with five times the iterations.",
        ("model", "calibration"),
        ("sampler", "condition", "calibration", "reconstruction", "quantizer", "methods.quest", "analysis"),
        by_name=True,
    ),
}


def files(study: str, given: Mapping[str, Sequence[Path]]) -> dict[str, Sequence[Path]]:
    """What a study reads, by the names of its `Study.files`; given: by the names of the command's options, which say
    ``checkpoint`` for one or many. Raises ValueError for files that are missing, or that the study does not read."""
    expected = {name.removesuffix("s"): name for name in STUDIES[study].files}
    found = {name: paths for name, paths in given.items() if paths}
    for option, name in expected.items():
        if name in STUDIES[study].spared and not found.get(option):
            continue
        if not found.get(option) or (name == option and len(found[option]) > 1):
            raise ValueError(
                f"--{option}: found {len(found.get(option, ()))} files, the study {study} reads "
                f"{'one' if name == option else 'one or more'}"
            )
    if strange := sorted(set(found) - set(expected)):
        raise ValueError(f"--{strange[0]}: the study {study} reads {', '.join(expected)} only")
    return {name: found[option] for option, name in expected.items() if option in found}


def measure(study: str, dataset: str, subject: Subject) -> tuple[list[Row], Figure]:
    """The rows of a study, and their chart."""
    module = importlib.import_module(f"quest.studies.{study}")
    rows = module.measure(subject)
    return rows, module.chart(dataset, rows)
