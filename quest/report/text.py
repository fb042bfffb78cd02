"""Text tables for the terminal. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate


def table(rows: Sequence[Sequence[str]]) -> str:
    """Text in aligned columns, ``rows[0]`` being the header; columns of numbers are aligned to the right."""
    header, *lines = rows
    numeric = [all(cell[:1].isdigit() or cell in ("", "–") for cell in column) for column in zip(*lines, strict=True)]
    align = ["right" if each else "left" for each in numeric]
    return tabulate(lines, header, "plain", colalign=align, disable_numparse=True)
