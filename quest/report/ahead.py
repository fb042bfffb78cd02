"""Who is ahead: at each bit-width the project's method, or the best where it is not in the table, beside every other.

Two methods are compared chain by chain and image by image, on the same noise. The first is ahead of the second where
the whole interval of their difference in PSNR to full precision's images, which is that of the logarithm of MSE, is
above zero; behind where it is below; beside where it holds zero, so that these chains cannot tell them apart. Of one
chain there is an interval over its images alone, and the words for it are others: closer and farther.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from quest.config import policies
from quest.config.values import FULL_PRECISION
from quest.report.paired import CONFIDENCE, Interval, difference, interval, interval_of_images
from quest.report.rows import MISSING, Row, chain, named, row_key
from quest.report.sheet import Sheet, decimals, unbroken

OURS = "traq"
"""The method of this project."""

Cell = Sequence[Row]
"""Rows of one method at one bit-width, a seed each."""
Errors = Mapping[str, Sequence[float]]
"""Mean squared error of each image of a row, by `row_key`, of the rows that have it."""


def build(rows: Iterable[Row], errors: Errors) -> list[dict[str, Any]]:
    """A row for each pair of cells, by bit-width, and by policy where variants say theirs; in the order of ``rows``.

    bits; first and second: the methods by name; chains: how many both have, which all else is of; psnr and fid:
    "value", the first minus the second, and its interval "low" and "high", None where there is none, or None in all;
    closer: share of images that are closer to full precision's under the first; verdict: what the first is to the
    second.
    """
    groups: dict[tuple[str, str | None], dict[str, list[Row]]] = {}
    for row in rows:
        if row["method"] != FULL_PRECISION and row.get("psnr") is not None:
            group = groups.setdefault((row["bits"], policies.said(row["method"])), {})
            group.setdefault(row["method"], []).append(row)
    found = []
    for (_, policy), cells in groups.items():
        own = f"{OURS}+{policy}".replace("_", "-") if policy else OURS
        first = own if own in cells else max(cells, key=lambda method: _mean(cells[method]))
        found += [_pair(cells[first], cell, errors) for method, cell in cells.items() if method != first]
    return found


def sheet(pairs: Sequence[Mapping[str, Any]]) -> Sheet | None:
    """The pairs for reading; None where none has an interval, for then nothing can be said."""
    if not any(pair["psnr"] and pair["psnr"]["low"] is not None for pair in pairs):
        return None
    columns = {
        "Bits": [pair["bits"].upper() for pair in pairs],
        "Method": [pair["first"] for pair in pairs],
        "is": [pair["verdict"] or MISSING for pair in pairs],
        "Other": [pair["second"] for pair in pairs],
        "PSNR (dB)": [_written(pair["psnr"]) for pair in pairs],
        "MSE": [f"× {10 ** (-pair['psnr']['value'] / 10):.2f}" if pair["psnr"] else MISSING for pair in pairs],
        "Closer": [MISSING if pair["closer"] is None else f"{pair['closer']:.0%}" for pair in pairs],
        "FID": [_written(pair["fid"]) for pair in pairs],
    }
    counts = {pair["chains"] for pair in pairs}
    if len(counts) > 1:
        columns["Chains"] = [str(pair["chains"]) for pair in pairs]
    over = f"{max(counts)} chains" if len(counts) == 1 < max(counts) else "chains"
    note = (
        f"The first method minus the second, on the same noise, with the {CONFIDENCE:.0%} interval over {over}; of MSE "
        "the ratio; closer: of how many images. Ahead or behind: the interval of PSNR leaves out 0; beside: it holds "
        f"0, so these chains cannot tell the two apart. {MISSING} is not available."
    )
    if any(pair["verdict"] and pair["chains"] == 1 for pair in pairs):
        note += " Closer than or farther than: the interval is over the images of one chain; another may say otherwise."
    words = ("Bits", "Method", "is", "Other")
    return Sheet("Who is ahead", tuple(columns), tuple(zip(*columns.values(), strict=True)), words, (note,))


def _pair(first: Cell, second: Cell, errors: Errors) -> dict[str, Any]:
    common = {(row["seed"], chain(row)) for row in first} & {(row["seed"], chain(row)) for row in second}
    ours, others = ([row for row in cell if (row["seed"], chain(row)) in common] for cell in (first, second))
    chains = len({quantized for _, quantized in common})
    psnr, fid = _change(ours, others, "psnr"), _change(ours, others, "fid")
    images = [[errors.get(row_key(row), ()) for row in cell] for cell in (ours, others)]
    closer = None
    if common and all(map(all, images)):
        closer = statistics.fmean(
            a < b for own, other in zip(*images, strict=True) for a, b in zip(own, other, strict=True)
        )
        if psnr and chains == 1:
            psnr |= interval_of_images(*images)._asdict()
    return {
        "bits": first[0]["bits"],
        "first": named(first[0]),
        "second": named(second[0]),
        "chains": chains,
        "psnr": psnr,
        "fid": fid,
        "closer": closer,
        "verdict": _verdict(psnr, chains),
    }


def _change(first: Cell, second: Cell, key: str) -> dict[str, Any] | None:
    before, after = _by_chain(second, key), _by_chain(first, key)
    if not (before and after):
        return None
    found = interval(before, after)
    return {"value": difference(before, after).value, **(found._asdict() if found else dict.fromkeys(Interval._fields))}


def _by_chain(cell: Cell, key: str) -> dict[int, float]:
    """The mean over the seeds of each chain; empty where one lacks the number."""
    found: dict[int, list[float]] = {}
    for row in cell:
        quantized, value = chain(row), row.get(key)
        if quantized is None or value is None:
            return {}
        found.setdefault(quantized, []).append(value)
    return {quantized: statistics.fmean(values) for quantized, values in found.items()}


def _mean(cell: Cell) -> float:
    return statistics.fmean(row["psnr"] for row in cell)


def _verdict(psnr: Mapping[str, Any] | None, chains: int) -> str | None:
    if psnr is None or psnr["low"] is None:
        return None
    above, below = ("ahead of", "behind") if chains > 1 else ("closer than", "farther than")
    return above if psnr["low"] > 0 else below if psnr["high"] < 0 else "beside"


def _written(change: Mapping[str, Any] | None) -> str:
    if change is None:
        return MISSING
    value, low, high = change["value"], change["low"], change["high"]
    digits = decimals(2, *(part for part in (value, low, high) if part is not None))
    text = f"{value:+,.{digits}f}"
    return text if low is None else unbroken(f"{text} [{low:+,.{digits}f}, {high:+,.{digits}f}]")
