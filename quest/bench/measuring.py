"""What the benchmarks share: a clock that waits for the device, and peak memory."""

from __future__ import annotations

import platform
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch


def seconds(function: Callable[[], Any], device: torch.device | str) -> float:
    """Wall-clock seconds of one call, until the device has done all of it."""
    wait(device)
    begin = time.perf_counter()
    function()
    wait(device)
    return time.perf_counter() - begin


def step_seconds(run: Callable[[int], Any], steps: int, device: torch.device | str) -> float:
    """Seconds of one step of ``run(number of steps)``: of steps + 1 less those of 1, so that what a run does once does
    not count. A first run warms up."""
    run(1)
    once = seconds(lambda: run(1), device)
    return (seconds(lambda: run(steps + 1), device) - once) / steps


def wait(device: torch.device | str) -> None:
    """Until the device has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device | str) -> None:
    """Begin `peak_mib` anew, where that can be done: on a GPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_mib(device: torch.device | str) -> float:
    """Peak memory in MiB: of tensors on a GPU since `reset_peak`; else what the process has ever held (RSS)."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def machine(device: torch.device | str) -> str:
    """Where and with what was measured, one line."""
    where = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    if torch.device(device).type == "cuda":
        where = f"{torch.cuda.get_device_name(device)}; {where}"
    return f"torch {torch.__version__}; {where}"
