"""When jobs would run on so many cores and GPUs: list scheduling, the longest way to the end first.

Whenever cores are free, the job that waits for nothing and has the longest chain of jobs behind it begins. That is
close to what Snakemake does, which chooses by priorities and how many jobs wait; neither is the best possible.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

from quest.estimate.plan import Job


class Schedule(NamedTuple):
    """seconds: until the last job ends. critical: of the longest chain, which no number of cores shortens. memory: the
    most bytes that jobs which run at once need together."""

    seconds: float
    critical: float
    memory: float


def schedule(
    jobs: Sequence[Job], seconds: Sequence[float], memory: Sequence[float], cores: int, gpus: int | None
) -> Schedule:
    """The schedule of jobs that take so many ``seconds`` and bytes. gpus: how many jobs with a GPU run at once; None
    for any number. A job that asks for more threads than there are cores takes all of them."""
    follows: list[list[int]] = [[] for _ in jobs]
    for number, job in enumerate(jobs):
        for before in job.needs:
            follows[before].append(number)
    left = _to_the_end(jobs, seconds, follows)
    waits = [len(job.needs) for job in jobs]
    ready = [(-left[number], number) for number, count in enumerate(waits) if not count]
    heapq.heapify(ready)
    running: list[tuple[float, int]] = []
    now, free, free_gpus, used, most = 0.0, cores, gpus, 0.0, 0.0
    while ready or running:
        put_off = []
        while ready and free:
            first = heapq.heappop(ready)
            number = first[1]
            threads, gpu = min(jobs[number].threads, cores), min(jobs[number].gpu, gpus or 0)
            if threads > free or (free_gpus is not None and gpu > free_gpus):
                put_off.append(first)
                continue
            free -= threads
            free_gpus = None if free_gpus is None else free_gpus - gpu
            used += memory[number]
            heapq.heappush(running, (now + seconds[number], number))
        most = max(most, used)
        for each in put_off:
            heapq.heappush(ready, each)
        now, number = heapq.heappop(running)
        free += min(jobs[number].threads, cores)
        free_gpus = None if free_gpus is None else free_gpus + min(jobs[number].gpu, gpus or 0)
        used -= memory[number]
        for after in follows[number]:
            waits[after] -= 1
            if not waits[after]:
                heapq.heappush(ready, (-left[after], after))
    return Schedule(now, max(left, default=0.0), most)


def _to_the_end(jobs: Sequence[Job], seconds: Sequence[float], follows: Sequence[Sequence[int]]) -> list[float]:
    """Of each job, the seconds of the longest chain that begins with it."""
    left = [0.0] * len(jobs)
    missing = [len(after) for after in follows]
    ends = [number for number, count in enumerate(missing) if not count]
    while ends:
        number = ends.pop()
        left[number] = seconds[number] + max((left[after] for after in follows[number]), default=0.0)
        for before in jobs[number].needs:
            missing[before] -= 1
            if not missing[before]:
                ends.append(before)
    return left
