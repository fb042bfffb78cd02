"""How cost grows: time and peak memory of a work (`quest.bench.works`) as one quantity of it grows, the others fixed.

Cost ∝ quantityᵖ is fitted to medians of repeats, on logarithms of both by least squares. On a CPU time is what the
process computes for, so that other processes do not count; on a GPU it is the device's own, by events.
Memory is the most that was held beyond what was held before: resident on a CPU, allocated on a GPU.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.ticker import LogLocator, NullLocator

from quest import artifacts, resident
from quest.bench import measuring
from quest.bench.works import WORKS, Point, Work
from quest.config.reading import unknown
from quest.report import drawing, text

LEAST_BYTES = 2**16
"""Memory is not told apart below this: a kernel counts pages for each thread, and tells them late."""
_LEAST_SECONDS = 1e-6
QUANTITIES = ("batch", "samples", "iterations", "parameters", "bits")


class Curve(NamedTuple):
    """One quantity of one work, at these sizes; of parameters, at these widths. time, memory: the exponents that are
    expected of a problem that fills its machine."""

    work: str
    quantity: str
    sizes: tuple[int, ...]
    time: float
    memory: float


_WIDTHS, _BITS = (8, 16, 24, 32), (2, 4, 6, 8)
_FEW, _SOME = (1, 2, 4, 8), (4, 8, 16, 32)
CURVES = (
    Curve("weight search", "parameters", _WIDTHS, 1.0, 0.5),
    Curve("weight search", "bits", _BITS, 0.0, 0.0),
    Curve("activation search", "samples", _SOME, 1.0, 1.0),
    Curve("activation search", "parameters", _WIDTHS, 0.7, 0.5),
    Curve("activation search", "bits", _BITS, 0.0, 0.0),
    Curve("learned rounding", "batch", _SOME, 0.8, 0.9),
    Curve("learned rounding", "iterations", _SOME, 1.0, 0.0),
    Curve("learned rounding", "parameters", _WIDTHS, 0.8, 0.7),
    Curve("learned rounding", "bits", _BITS, 0.0, 0.0),
    Curve("recording", "samples", (16, 32, 64, 128), 1.0, 1.0),
    Curve("recording", "parameters", _WIDTHS, 0.8, 0.5),
    Curve("QuEST finetuning", "batch", _FEW, -0.2, 0.9),
    Curve("QuEST finetuning", "samples", _SOME, 1.0, 0.0),
    Curve("QuEST finetuning", "iterations", _FEW, 1.0, 0.0),
    Curve("QuEST finetuning", "parameters", _WIDTHS, 0.8, 0.6),
    Curve("QuEST finetuning", "bits", _BITS, 0.0, 0.0),
    Curve("sampling", "batch", (2, 4, 8, 16), -0.1, 0.9),
    Curve("sampling", "samples", (8, 16, 32, 64), 1.0, 0.0),
    Curve("sampling", "iterations", _FEW, 1.0, 0.0),
    Curve("sampling", "parameters", _WIDTHS, 0.8, 0.5),
    Curve("sampling", "bits", _BITS, 0.0, 0.0),
    Curve("features", "batch", (16, 32, 64, 128), 0.0, 1.0),
    Curve("features", "samples", (64, 128, 256, 512), 1.0, 0.1),
    Curve("features", "parameters", _WIDTHS, 0.8, 0.5),
    Curve("metrics", "samples", (256, 512, 1_024, 2_048), 1.3, 1.0),
)
"""What is measured, and what was expected before it was; why: docs/performance.md."""

_BASES = {
    "weight search": Point(batch=1, samples=1, iterations=1, width=16, bits=4),
    "activation search": Point(batch=16, samples=16, iterations=1, width=16, bits=4),
    "learned rounding": Point(batch=8, samples=32, iterations=8, width=16, bits=4),
    "recording": Point(batch=16, samples=16, iterations=1, width=16, bits=4),
    "QuEST finetuning": Point(batch=4, samples=8, iterations=1, width=16, bits=4),
    "sampling": Point(batch=8, samples=16, iterations=1, width=16, bits=4),
    "features": Point(batch=64, samples=256, iterations=1, width=16, bits=4),
    "metrics": Point(batch=64, samples=1_024, iterations=1, width=16, bits=4),
}
_LARGER_ON_A_GPU = {"batch": 8, "samples": 8, "iterations": 4, "width": 8}
_NOT_LARGER = ("activation search",)  # whose samples go through at once, at most 64


class Fit(NamedTuple):
    """exponent: p of cost ∝ quantityᵖ. error: its standard error."""

    exponent: float
    error: float

    def __str__(self) -> str:
        return f"{self.exponent:z.2f} ± {self.error:.2f}"


class Cost(NamedTuple):
    """seconds: of computing, or of the device. clock: seconds that passed. bytes: held at most, beyond before."""

    seconds: float
    clock: float
    bytes: float


class Grown(NamedTuple):
    """A curve, measured: sizes of its quantity, and the cost at each."""

    curve: Curve
    sizes: tuple[float, ...]
    costs: tuple[Cost, ...]

    @property
    def time(self) -> Fit:
        return fit(self.sizes, [max(cost.seconds, _LEAST_SECONDS) for cost in self.costs])

    @property
    def memory(self) -> Fit:
        return fit(self.sizes, [max(cost.bytes, LEAST_BYTES) for cost in self.costs])


def fit(sizes: Sequence[float], costs: Sequence[float]) -> Fit:
    """The exponent of costs over sizes, both above 0; three or more, for an error."""
    (slope, _), covariance = np.polyfit(np.log(sizes), np.log(costs), 1, cov=True)
    return Fit(float(slope), float(covariance[0, 0] ** 0.5))


def run(device: torch.device, repeats: int = 3, only: Sequence[str] = ()) -> Iterator[Grown]:
    """Every curve, or those of the works in ``only``; each point is the median of ``repeats``. Raises ValueError for an
    unknown work."""
    if strange := set(only) - set(WORKS):
        raise ValueError(f"--work: {unknown(min(strange), WORKS)}")
    for curve in CURVES:
        if not only or curve.work in only:
            yield grow(curve, points(curve, device.type), device, repeats)


def points(curve: Curve, kind: str) -> list[Point]:
    """Where a curve is measured; on a GPU (kind "cuda") larger."""
    larger = _LARGER_ON_A_GPU if kind == "cuda" and curve.work not in _NOT_LARGER else {}
    base = _BASES[curve.work]
    base = base._replace(**{name: times * getattr(base, name) for name, times in larger.items()})
    name = "width" if curve.quantity == "parameters" else curve.quantity
    return [base._replace(**{name: larger.get(name, 1) * size}) for size in curve.sizes]


def grow(curve: Curve, at: Sequence[Point], device: torch.device, repeats: int) -> Grown:
    """Measure a curve at these points, which take turns, so that a machine that slows down does so for all of them."""
    works = [WORKS[curve.work](point, device) for point in at]
    for work in works:
        work.once()  # prepares what libraries keep
    turns = [[_cost(work, device) for work in works] for _ in range(repeats)]
    costs = [Cost(*map(statistics.median, zip(*of_point, strict=True))) for of_point in zip(*turns, strict=True)]
    if curve.quantity == "parameters":
        return Grown(curve, tuple(work.parameters for work in works), tuple(costs))
    return Grown(curve, tuple(getattr(point, curve.quantity) for point in at), tuple(costs))


def _cost(work: Work, device: torch.device) -> Cost:
    """Of the work, less what is done once."""
    whole, once = _taken(work.run, device), _taken(work.once, device)
    return Cost(whole.seconds - once.seconds, whole.clock - once.clock, whole.bytes)


def _taken(call: Callable[[], Any], device: torch.device) -> Cost:
    if device.type == "cuda":
        return _taken_on_gpu(call, device)
    resident.begin_anew()
    before, computed, begun = resident.now(), time.process_time(), time.perf_counter()
    call()
    return Cost(time.process_time() - computed, time.perf_counter() - begun, resident.peak() - before)


def _taken_on_gpu(call: Callable[[], Any], device: torch.device) -> Cost:
    gc.collect()
    measuring.reset_peak(device)
    before = torch.cuda.memory_allocated(device)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    measuring.wait(device)
    begun = time.perf_counter()
    first.record()
    call()
    last.record()
    measuring.wait(device)
    clock = time.perf_counter() - begun
    return Cost(first.elapsed_time(last) / 1e3, clock, torch.cuda.max_memory_allocated(device) - before)


# Shown


def table(grown: Sequence[Grown]) -> str:
    """A row a curve: exponents with standard errors, beside those expected, and what the least and the largest took."""
    rows = [("work", "grows", "from … to", "time ∝", "expected", "ms", "memory ∝", "expected", "MiB")]
    for each in grown:
        curve, first, last = each.curve, each.costs[0], each.costs[-1]
        rows.append(
            (
                curve.work,
                curve.quantity,
                f"{each.sizes[0]:,} … {each.sizes[-1]:,}",
                str(each.time),
                f"{curve.time:.1f}",
                f"{1e3 * first.seconds:,.0f} … {1e3 * last.seconds:,.0f}",
                str(each.memory),
                f"{curve.memory:.1f}",
                f"{first.bytes / 2**20:,.1f} … {last.bytes / 2**20:,.1f}",
            )
        )
    return text.table(rows)


def clock(device: torch.device) -> str:
    """What the seconds and bytes of a table are."""
    if device.type == "cuda":
        return "time of the device by events; peak of allocated memory beyond what was allocated before"
    return "CPU time of the process; peak of resident memory beyond what was resident before"


def save(grown: Sequence[Grown], device: torch.device, path: Path) -> None:
    """The same as JSON, a line a curve: all sizes and costs (seconds, seconds by the clock, bytes)."""
    lines = [
        json.dumps(
            each.curve._asdict()
            | {"at": each.sizes, "costs": [[float(f"{value:.4g}") for value in cost] for cost in each.costs]}
            | {"fitted_time": each.time, "fitted_memory": each.memory}
        )
        for each in grown
    ]
    head = json.dumps({"machine": measuring.machine(device), "measured": clock(device)})[1:-1]
    content = f'{{{head}, "curves": [\n' + ",\n".join(lines) + "\n]}\n"
    artifacts.write_bytes(path, content.encode())


def load(path: Path) -> tuple[str, list[Grown]]:
    """What `save` wrote: where and what was measured, and the curves."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))

    def curve(saved: dict[str, Any]) -> Curve:
        fields = {name: saved[name] for name in Curve._fields}
        return Curve(**{**fields, "sizes": tuple(saved["sizes"])})

    grown = [
        Grown(
            curve(each),
            tuple(each["at"]),
            tuple(Cost(*cost) for cost in each["costs"]),
        )
        for each in content["curves"]
    ]
    return f"{content['machine']}; {content['measured']}", grown


def chart(grown: Sequence[Grown], path: Path) -> None:
    """Time above, memory below, a column a quantity: both times their least size's, so that a slope is an exponent."""
    figure = drawing.figure(12, 5.2, layout="constrained")
    axes = figure.subplots(2, len(QUANTITIES), sharey="row")
    names = list(WORKS)
    for column, quantity in enumerate(QUANTITIES):
        for row, (title, key) in enumerate((("time", "seconds"), ("peak memory", "bytes"))):
            here = axes[row, column]
            drawing.plain(here, quantity if row == 0 else "", "" if row == 0 else "times the least", "")
            here.set(xscale="log", yscale="log")
            for axis in (here.xaxis, here.yaxis):
                axis.set_major_locator(LogLocator(base=2))
                axis.set_major_formatter("{x:g}")
                axis.set_minor_locator(NullLocator())
            if column == 0:
                here.set_ylabel(f"{title}, times the least", color=drawing.INK)
            for each in grown:
                if each.curve.quantity == quantity:
                    least = LEAST_BYTES if key == "bytes" else _LEAST_SECONDS
                    costs = np.maximum([getattr(cost, key) for cost in each.costs], least)
                    place = names.index(each.curve.work)
                    here.plot(
                        np.array(each.sizes) / each.sizes[0],
                        costs / costs[0],
                        color=drawing.colour(place),
                        marker=drawing.marker(place),
                        linestyle=drawing.dashes(place // 4),
                        markersize=4,
                        linewidth=1.4,
                        label=each.curve.work,
                    )
            ends = here.get_xlim()
            here.plot(ends, ends, color="#bbbbbb", linewidth=0.8, zorder=0)
            here.set_xlim(ends)
    lines = {line.get_label(): line for here in axes.flat for line in here.get_lines() if line.get_label()[0] != "_"}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=-(-len(lines) // 2), frameon=False)
    drawing.save(figure, path, small=path.suffix == ".png")
