"""Seconds and memory of jobs of the last run, from the benchmark files that Snakemake writes for them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

from quest.report import text

STAGES = (
    "pretrain_clip",
    "pretrain",
    "pretrain_denoiser",
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
    "paper",
)


class Cost(NamedTuple):
    """What a job took: wall-clock seconds, and the largest resident host memory in MB."""

    seconds: float
    memory_mb: float


def stages(folder: Path) -> str:
    """A text table in the order of the chain: stage, its jobs, their seconds in total, the longest one's seconds.

    folder: where ``<stage>/…/<job>.tsv`` lie.
    Raises ValueError when there is none, or for a file that is not Snakemake's.
    """
    rows = []
    for stage in STAGES:
        seconds = [cost(file).seconds for file in sorted((folder / stage).rglob("*.tsv"))]
        if seconds:
            rows.append((stage, str(len(seconds)), f"{sum(seconds):.1f}", f"{max(seconds):.1f}"))
    if not rows:
        raise ValueError(f"{folder}: no benchmarks of any stage; `snakemake` writes them for the jobs that it runs")
    return text.table([("stage", "jobs", "total s", "max s"), *rows])


def cost(file: Path) -> Cost:
    """A job's benchmark, columns ``s`` and ``max_rss``; the mean of repeated runs.

    A job that ended before Snakemake looked at its memory has 0 MB. Raises ValueError for a file that is not
    Snakemake's.
    """
    with file.open(encoding="utf-8") as lines:
        try:
            rows = list(csv.DictReader(lines, delimiter="\t"))
            seconds = [float(row["s"]) for row in rows]
            memory = [float(row["max_rss"]) if row.get("max_rss") not in (None, "-", "NA") else 0.0 for row in rows]
            return Cost(sum(seconds) / len(seconds), sum(memory) / len(memory))
        except (KeyError, ValueError, TypeError, ZeroDivisionError) as error:
            raise ValueError(f"{file}: not a benchmark file of Snakemake (no seconds in its column 's')") from error
