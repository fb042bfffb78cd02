"""What cells took to make, from the records of the jobs that made them, and quality against it. Never imports torch.

A cell takes what its whole chain takes: calibration data, learned rounding where it starts from that, and the
quantizing itself, the wall-clock seconds of each job added up, as if nothing were shared. Seconds of two machines say
nothing about two methods, so each machine has a chart of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from quest.artifacts import ArtifactError
from quest.config.values import FULL_PRECISION
from quest.report import drawing, naming, tables
from quest.report.drawing import INK
from quest.report.figures import QUALITY, front
from quest.report.tables import Row

RECORDS = tuple(Path(f"results/{stage}/records.json") for stage in ("finetune", "reconstruction", "calibration"))
_LEAST = 1.0  # seconds: importing torch alone takes longer, so a job of less was taken over, not run
SECONDS = "seconds to make (calibration, learned rounding, quantizing)"


class Made(NamedTuple):
    """machine: what it is called; None where it was not recorded."""

    seconds: float
    machine: str | None


def made(root: Path) -> dict[str, Made]:
    """By ``<dataset>/<cell>-seed<seed>``: what each quantized cell took whose jobs are all on record with their time.

    A job whose result was taken over has no time, nor has a cell whose jobs ran on more than one machine.
    Raises ArtifactError for a damaged file.
    """
    jobs = {file: job for records in RECORDS for file, job in _jobs(root / records).items()}
    found = {}
    for file in jobs:
        chain = [file, *(name for name in jobs[file]["record"].get("input") or () if name.startswith("results/"))]
        seconds = [_seconds(jobs[name]) if name in jobs else 0.0 for name in chain]
        machines = {jobs[name].get("machine") for name in chain if name in jobs}
        if Path(file).is_relative_to(RECORDS[0].parent) and min(seconds) > _LEAST and len(machines) == 1:
            cell = Path(file)
            found[f"{cell.parent.name}/{cell.stem}"] = Made(sum(seconds), machines.pop())
    return found


def mean(each: Sequence[Made]) -> Made | None:
    """Of the chains of one cell; None where they ran on more than one machine, or there is none."""
    machines = {one.machine for one in each}
    return Made(sum(one.seconds for one in each) / len(each), machines.pop()) if len(machines) == 1 else None


def chart(dataset: str, cells: Sequence[tuple[Row, Made]], full: Row | None = None) -> Figure:
    """Quality against seconds: a column of panels a machine, a point a cell, bars for the spread over seeds. A line
    a bit-width joins the cells that none made in less time is as good as, by their means; other points are hollow.

    cells: rows of a summary with what they took. full: full precision's row, whose FID is a dashed line.
    Raises ValueError where there is no cell.
    """
    if not cells:
        raise ValueError(f"{dataset}: no cell whose time was recorded; a run of `snakemake` records it")
    machines = list(dict.fromkeys(time.machine for _, time in cells))
    styles = drawing.method_styles(list(dict.fromkeys(row["method"] for row, _ in cells)))
    figure = drawing.figure(5.5 * len(machines) + 1, 7, layout="constrained")
    names = []
    panels = figure.subplots(2, len(machines), sharey="row", squeeze=False)
    for column, machine in enumerate(machines):
        mine = [(row, time.seconds) for row, time in cells if time.machine == machine]
        for line, (metric, name) in enumerate(QUALITY):
            axes = panels[line][column]
            shown = [(row, seconds) for row, seconds in mine if row.get(metric) is not None]
            lines = [
                (bits, _draw(axes, metric, [each for each in shown if each[0]["bits"] == bits], styles))
                for bits in dict.fromkeys(row["bits"] for row, _ in shown)
            ]
            names.append(
                naming.Names(
                    axes,
                    [bits.upper() for bits, _ in lines],
                    [line[-1] for _, line in lines],
                    [(seconds, row[metric]) for row, seconds in shown],
                    [line for _, line in lines],
                )
            )
            if metric == "fid" and full is not None and full.get("fid") is not None:
                axes.axhline(full["fid"], color=INK, linestyle="--", linewidth=1.2, label=tables.title(FULL_PRECISION))
            heading = name if line or machines == [None] else f"{machine or 'machine not recorded'}\n{name}"
            drawing.plain(axes, heading, SECONDS if line else "")
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.margins(x=0.2, y=0.1)
    title = f"{dataset}: which method in which time\nOn a line: nothing faster of that bit-width is as good"
    if len(machines) > 1:
        title += "\nSeconds of different machines cannot be compared"
    elif machines == [None]:
        title += "\nOne run, its machine not recorded"
    figure.suptitle(title, x=0.01, ha="left", size=11, color=INK)
    legends = [zip(*reversed(axes.get_legend_handles_labels()), strict=True) for axes in panels[0]]
    handles = {label: handle for legend in legends for label, handle in legend}
    columns = min(4, len(handles))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False)
    naming.write(figure, names, size=8)
    return figure


def _draw(
    axes: Axes, metric: str, cells: Sequence[tuple[Row, float]], styles: Mapping[str, dict[str, Any]]
) -> list[tuple[float, float]]:
    """The points of one bit-width and its line, which is returned."""
    best = front([(seconds, row[metric] if metric == "fid" else -row[metric]) for row, seconds in cells])
    for index, (row, seconds) in enumerate(cells):
        hollow = {} if index in best else {"markerfacecolor": "white"}
        style: dict[str, Any] = styles[row["method"]] | {"linestyle": "none"} | hollow
        bar, label = row[f"{metric}_spread"] or None, tables.title(row["method"])
        axes.errorbar(seconds, row[metric], yerr=bar, markersize=7, capsize=3, label=label, **style)
    joined = [(cells[index][1], cells[index][0][metric]) for index in best]
    axes.plot(*zip(*joined, strict=True), color=INK, linewidth=1, alpha=0.5, zorder=0)
    return joined


def _jobs(file: Path) -> dict[str, Any]:
    """What is recorded of jobs, by the file that each wrote."""
    try:
        entries = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
        return {entry["file"]: entry for entry in entries if _seconds(entry) is not None}
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{file}: not Snakemake's records; `dvc pull {file.parent}` restores it") from error


def _seconds(entry: Mapping[str, Any]) -> float:
    return entry["record"]["endtime"] - entry["record"]["starttime"]
