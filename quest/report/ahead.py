"""Who is ahead: at each bit-width the project's method, or the best where it is not in the table, beside every other.

Two methods are compared chain by chain, on the same noise. The first is ahead of the second where the whole interval of
their difference in PSNR to full precision's images, which is that of the logarithm of MSE, is above zero; behind where
it is below; beside where it holds zero, so that these chains cannot tell them apart.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from quest.config import policies
from quest.config.values import FULL_PRECISION
from quest.report.paired import CONFIDENCE, Interval, difference, interval
from quest.report.rows import MISSING, Row, chain, named
from quest.report.sheet import Sheet, unbroken

OURS = "traq"
"""The method of this project."""

Cell = Sequence[Row]
"""Rows of one method at one bit-width, a seed each."""


class Change(NamedTuple):
    """The first method's number minus the second's, and its interval, None with fewer than two chains."""

    value: float
    interval: Interval | None


class Pair(NamedTuple):
    """Two cells, and their differences over the chains that both have. A number that one of them lacks is None."""

    first: Row
    second: Row
    chains: int
    psnr: Change | None
    fid: Change | None

    @property
    def verdict(self) -> str:
        """What the first is to the second."""
        if self.psnr is None or self.psnr.interval is None:
            return MISSING
        low, high = self.psnr.interval
        return "ahead of" if low > 0 else "behind" if high < 0 else "beside"


def pairs(rows: Iterable[Row]) -> list[Pair]:
    """Of each bit-width, and of each policy that names of variants say, in the order of ``rows``."""
    groups: dict[tuple[str, str | None], dict[str, list[Row]]] = {}
    for row in rows:
        if row["method"] != FULL_PRECISION and row.get("psnr") is not None:
            group = groups.setdefault((row["bits"], policies.said(row["method"])), {})
            group.setdefault(row["method"], []).append(row)
    found = []
    for (_, policy), cells in groups.items():
        own = f"{OURS}+{policy}".replace("_", "-") if policy else OURS
        first = own if own in cells else max(cells, key=lambda method: _mean(cells[method]))
        found += [_pair(cells[first], cell) for method, cell in cells.items() if method != first]
    return found


def sheet(rows: Iterable[Row]) -> Sheet | None:
    """The pairs for reading; None where no pair has two chains, of which nothing can be said."""
    found = pairs(rows)
    if not any(pair.psnr and pair.psnr.interval for pair in found):
        return None
    headers = ("Bits", "Method", "is", "Other", "PSNR (dB)", "MSE", "FID", "Chains")
    lines = tuple(
        (
            pair.first["bits"].upper(),
            named(pair.first),
            pair.verdict,
            named(pair.second),
            _written(pair.psnr),
            MISSING if pair.psnr is None else f"× {10 ** (-pair.psnr.value / 10):.2f}",
            _written(pair.fid),
            str(pair.chains),
        )
        for pair in found
    )
    note = (
        f"The first method minus the second, on the same noise, with the {CONFIDENCE:.0%} interval over chains; of MSE "
        "the ratio. Ahead or behind: the interval of PSNR leaves out 0; beside: it holds 0, so these chains cannot "
        f"tell the two apart. {MISSING}: a number is missing, or there are fewer than two chains."
    )
    return Sheet("Who is ahead", headers, lines, words=headers[:4], notes=(note,))


def _pair(first: Cell, second: Cell) -> Pair:
    common = {(row["seed"], chain(row)) for row in first} & {(row["seed"], chain(row)) for row in second}
    ours, others = ([row for row in cell if (row["seed"], chain(row)) in common] for cell in (first, second))
    psnr, fid = _change(ours, others, "psnr"), _change(ours, others, "fid")
    return Pair(first[0], second[0], len({quantized for _, quantized in common}), psnr, fid)


def _change(first: Cell, second: Cell, key: str) -> Change | None:
    before, after = _by_chain(second, key), _by_chain(first, key)
    if not (before and after):
        return None
    return Change(difference(before, after).value, interval(before, after))


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


def _written(change: Change | None) -> str:
    if change is None:
        return MISSING
    text = f"{change.value:+,.2f}"
    if change.interval is None:
        return text
    return unbroken(f"{text} [{change.interval.low:+,.2f}, {change.interval.high:+,.2f}]")
