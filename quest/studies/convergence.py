"""Whether learned rounding has converged: each unit learned as the protocol says, and with five times the iterations.

A unit has converged where the longer run changes its loss by no more than 5 %. The loss is that on states which neither
run has seen: on those that they learn from it falls as long as they run, the more the fewer they are, and what is
learned then is these states. Both runs see the same inputs, of units before it as the protocol says; activations are in
full precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure

from quest.learning import reconstruction
from quest.learning.calibration import Samples
from quest.learning.reconstruction import Unit
from quest.report import drawing
from quest.studies import Row
from quest.studies.charts import curve, short, start_figure, with_legend
from quest.studies.subject import Subject

TIMES = 5
TOLERANCE = 0.05
UNSEEN = 512  # samples, of all recorded steps


def measure(subject: Subject) -> list[Row]:
    """A row for each unit, in the order in which they are learned: its loss rounded to nearest, as the protocol learns
    it and with `TIMES` the iterations; the relative change, and whether it is small. seen_learned, seen_longer: the
    losses on what is learned from."""
    settings = subject.settings.reconstruction
    longer = settings.model_copy(update={"iterations": TIMES * settings.iterations})
    network = subject.quantized(subject.bits, calibrated=False)
    data = subject.calibration.evenly(settings.samples)
    fresh = unseen(subject)
    rows = []
    with network.quantizing(weights=True, activations=False):
        for unit in reconstruction.units(network):
            with network.frozen():
                cache = reconstruction.record(network, unit, data, settings.cache_mib, weights=True)
                others = reconstruction.record(network, unit, fresh, settings.cache_mib, weights=True)
            nearest = reconstruction.error(unit, others)
            # The longer run first: what comes after sees the rounding of the last.
            long, losses = (
                reconstruction.learn_unit(unit, cache, each, torch.Generator().manual_seed(subject.seed))
                | {"unseen": reconstruction.error(unit, others)}
                for each in (longer, settings)
            )
            rows.append(row(unit, subject, nearest, losses, long))
    return rows


def unseen(subject: Subject) -> Samples:
    """States that nothing is learned from, of all recorded steps."""
    calibration = subject.calibration
    steps = len(calibration.steps)
    return subject.fresh(steps, max(1, UNSEEN // (steps * calibration.halves)))


def row(unit: Unit, subject: Subject, nearest: float, learned: Mapping[str, float], longer: Mapping[str, float]) -> Row:
    """Of a unit. nearest: its loss on unseen states. learned, longer: those of `learn_unit`, and "unseen"."""
    change = longer["unseen"] / learned["unseen"] - 1
    return {
        "unit": unit.name,
        "layers": len(unit.layers),
        "weight_bits": subject.bits.weight,
        "iterations": subject.settings.reconstruction.iterations,
        "nearest": nearest,
        "learned": learned["unseen"],
        "longer": longer["unseen"],
        "change": change,
        "converged": abs(change) <= TOLERANCE,
        "seen_learned": learned["learned"],
        "seen_longer": longer["learned"],
    }


def chart(dataset: str, rows: Sequence[Row]) -> Figure:
    """The losses of both runs over the units, as shares of the loss of nearest rounding."""
    first = rows[0]
    done = sum(row["converged"] for row in rows)
    title = f"{dataset}: learned rounding of {first['weight_bits']}-bit weights, {done} of {len(rows)} units converged"
    figure, (axes,) = start_figure(title, 12, 5.2, 1, 1)
    places = range(len(rows))
    for index, (key, times) in enumerate((("learned", 1), ("longer", TIMES))):
        shares = [row[key] / row["nearest"] for row in rows]
        curve(axes, index, places, shares, f"{times * first['iterations']:,} iterations", "-")
    axes.set_xticks(places, [short(row["unit"]) for row in rows], rotation=90)
    axes.set_ylim(bottom=0)
    meaning = f"On unseen states; a unit has converged where both differ by at most {TOLERANCE:.0%}"
    drawing.plain(axes, meaning, "", "loss / nearest rounding ↓")
    return with_legend(figure, axes)
