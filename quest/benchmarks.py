"""Seconds of each stage of the last run, from the benchmark files that Snakemake writes for its jobs."""

from __future__ import annotations

import csv
from pathlib import Path

STAGES = (
    "pretrain_clip",
    "pretrain",
    "reference",
    "calibrate",
    "reconstruct",
    "finetune",
    "sample",
    "measure",
    "score",
    "table",
    "figures",
    "track",
)


def stages(folder: Path) -> str:
    """A text table in the order of the chain: stage, its jobs, their seconds in total, the longest one's seconds.

    folder: where ``<stage>/…/<job>.tsv`` lie.
    Raises ValueError when there is none, or for a file that is not Snakemake's.
    """
    rows = []
    for stage in STAGES:
        seconds = [_seconds(file) for file in sorted((folder / stage).rglob("*.tsv"))]
        if seconds:
            rows.append((stage, str(len(seconds)), f"{sum(seconds):.1f}", f"{max(seconds):.1f}"))
    if not rows:
        raise ValueError(f"{folder}: no benchmarks of any stage; `snakemake` writes them for the jobs that it runs")
    table = [("stage", "jobs", "total s", "max s"), *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join([name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))])
        for name, *cells in table
    )


def _seconds(file: Path) -> float:
    """The ``s`` column (wall clock) of a job's benchmark; the mean of repeated runs."""
    with file.open() as lines:
        try:
            seconds = [float(row["s"]) for row in csv.DictReader(lines, delimiter="\t")]
            return sum(seconds) / len(seconds)
        except (KeyError, ValueError, TypeError, ZeroDivisionError) as error:
            raise ValueError(f"{file}: not a benchmark file of Snakemake (no seconds in its column 's')") from error
