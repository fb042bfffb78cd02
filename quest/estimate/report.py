"""An estimate as a table and as JSON; and beside what Snakemake recorded when the jobs ran."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from quest.estimate.costs import Cost, total
from quest.estimate.plan import Job
from quest.estimate.schedule import Schedule
from quest.report import text

_GIB, _HOUR = 2**30, 3600


class Recorded(NamedTuple):
    """What a job took: seconds by the clock; seconds of computing when Snakemake last looked, at most half a minute
    before the end; bytes of memory."""

    seconds: float
    computing: float
    memory: float


def by_stage(jobs: Sequence[Job], costs: Sequence[Cost]) -> dict[str, list[Cost]]:
    """Costs by rule, in the order in which the first job of each can begin."""
    depth: dict[int, int] = {}

    def depth_of(number: int) -> int:
        if number not in depth:
            depth[number] = 1 + max(map(depth_of, jobs[number].needs), default=0)
        return depth[number]

    order = sorted(range(len(jobs)), key=lambda number: (depth_of(number), jobs[number].rule))
    found: dict[str, list[Cost]] = {}
    for number in order:
        found.setdefault(jobs[number].rule, []).append(costs[number])
    return found


def table(stages: dict[str, list[Cost]], whole: Schedule, cores: int, machine: str) -> str:
    """The stages, and the whole run on ``cores``."""
    if not stages:
        return "nothing to do: every job of the run is there and up to date (--all: what all of them cost)"
    everything = [cost for costs in stages.values() for cost in costs]
    on_gpu = any(cost.gpu_memory for cost in everything)
    header = ["stage", "jobs", "hours", "longest", "memory GiB", *(["GPU GiB"] if on_gpu else []), "disk GiB"]
    rows = [header]
    for name, costs in [*stages.items(), ("all", everything)]:
        sums = total(costs)
        rows.append(
            [
                name + ("*" if sums.reckoned and name != "all" else ""),
                f"{len(costs):,}",
                _number(sums.seconds / _HOUR),
                _time(max(cost.seconds for cost in costs)),
                f"{sums.memory / _GIB:.2f}",
                *([f"{sums.gpu_memory / _GIB:.2f}"] if on_gpu else []),
                _number(sums.disk / _GIB),
            ]
        )
    lines = [
        text.table([tuple(row) for row in rows]),
        "",
        f"The whole run on {cores} cores of this machine, idle otherwise: {_time(whole.seconds)}. It needs "
        f"{whole.memory / _GIB:.1f} GiB of memory at most, by list scheduling, the longest chain of jobs first; no "
        f"number of cores makes it faster than {_time(whole.critical)}.",
        f"Measured here: {machine}. A stage's memory is that of its largest job.",
    ]
    if any(cost.reckoned for cost in everything):
        lines.append(
            "* An extrapolation: its network is too large to be timed here, so its calls are reckoned from those of a "
            "smaller one by their operations."
        )
    return "\n".join(lines)


def as_json(stages: dict[str, list[Cost]], whole: Schedule, cores: int, machine: str) -> dict[str, Any]:
    """The same for programs: seconds and bytes."""
    return {
        "machine": machine,
        "cores": cores,
        "seconds": whole.seconds,
        "critical_seconds": whole.critical,
        "memory_bytes": whole.memory,
        "disk_bytes": sum(total(costs).disk for costs in stages.values()),
        "stages": {
            name: {"jobs": len(costs), "longest_seconds": max(cost.seconds for cost in costs)} | total(costs)._asdict()
            for name, costs in stages.items()
        },
    }


def recorded(file: Path) -> Recorded | None:
    """A benchmark file of Snakemake, None where there is none, or where the job ended before it was looked at."""
    if not file.is_file():
        return None
    with file.open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    try:
        return Recorded(*(float(rows[-1][name]) for name in ("s", "cpu_time", "max_rss")))._replace(
            memory=float(rows[-1]["max_rss"]) * 2**20
        )
    except (IndexError, KeyError, ValueError, TypeError):
        return None


def check(jobs: Sequence[Job], costs: Sequence[Cost], root: Path) -> str:
    """Estimate and record, by stage, of the jobs that have a benchmark file under ``root``. Raises ValueError if none
    has."""
    pairs: dict[str, list[tuple[Cost, Recorded]]] = {}
    for job, cost in zip(jobs, costs, strict=True):
        found = None if job.benchmark is None else recorded(root / job.benchmark)
        if found is not None:
            pairs.setdefault(job.rule, []).append((cost, found))
    if not pairs:
        raise ValueError(f"{root / 'benchmarks'}: none of the jobs of this run has a benchmark file that can be read")
    rows = [
        ("stage", "jobs", "estimate s", "clock s", "ratio", "computing s", "ratio", "memory GiB", "recorded", "ratio")
    ]
    for name, found in pairs.items():
        seconds, computing = (sum(getattr(cost, key) for cost, _ in found) for key in ("seconds", "computing"))
        clock, busy = (sum(getattr(each, key) for _, each in found) for key in ("seconds", "computing"))
        memory, held = max(cost.memory for cost, _ in found), max(each.memory for _, each in found)
        rows.append(
            (
                name,
                str(len(found)),
                f"{seconds:.1f}",
                f"{clock:.1f}",
                f"{seconds / clock:.2f}",
                f"{busy:.1f}",
                f"{computing / busy:.2f}" if busy else "–",
                f"{memory / _GIB:.2f}",
                f"{held / _GIB:.2f}",
                f"{memory / held:.2f}" if held else "–",
            )
        )
    notes = (
        "Ratios are estimate / recorded. The clock also runs while other processes have the cores. Snakemake looks at "
        "computing and memory at intervals of up to 30 s, so of short jobs it misses the end."
    )
    return f"{text.table(rows)}\n\n{notes}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3f}"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / _HOUR:,.1f} h"
