"""A table for people to read: its words and numbers, and the same as Markdown, as HTML and as reStructuredText.

A number and its spread are one word (no-break spaces), so that no column is narrow enough to break them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tabulate import tabulate

NO_BREAK = "\u00a0"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5em; color: #1a1a1a; background: #fff; }
table { border-collapse: collapse; margin: 0.5em 0 1em; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: 0.4em; }
th, td { padding: 0.25em 0.6em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid #888; vertical-align: bottom; white-space: normal; }
.words { text-align: left; }
td.long { white-space: normal; min-width: 16em; text-align: left; }
p { max-width: 60em; }
"""
_SIGNIFICANT = 4  # digits of a number
_LONG = 40  # characters; a text beyond is one that may be broken into lines


@dataclass(frozen=True)
class Sheet:
    """A table with its title and the sentences under it. words: the columns that are texts, aligned to the left."""

    title: str
    headers: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    words: tuple[str, ...] = ("Method", "Bits")
    notes: tuple[str, ...] = ()


def decimals(most: int, *values: float) -> int:
    """How many digits to write after the point: ``most``, but four significant ones of the largest value do."""
    largest = max(map(abs, values))
    return min(most, max(0, _SIGNIFICANT - 1 - math.floor(math.log10(largest)))) if largest >= 1 else most


def unbroken(text: str) -> str:
    """``text`` as one word."""
    return text.replace(" ", NO_BREAK)


def markdown(sheet: Sheet) -> str:
    """The table alone, without its title and notes."""
    align = ["left" if header in sheet.words else "right" for header in sheet.headers]
    return tabulate(sheet.lines, sheet.headers, "pipe", colalign=align, disable_numparse=True)


def html(title: str, sheets: Sequence[Sheet]) -> str:
    """A page by itself, without script: every table with its title above it and its notes under it."""
    body = "\n".join(_html(sheet) for sheet in sheets)
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n<h1>{escape(title)}</h1>\n{body}\n</html>\n"
    )


def rst(sheet: Sheet) -> str:
    """The table and its notes, for the first page of Snakemake's report."""
    rows = "\n".join(
        f"   {'* -' if place == 0 else '  -'} {text}"
        for line in (sheet.headers, *sheet.lines)
        for place, text in enumerate(line)
    )
    notes = "\n\n".join(sheet.notes)
    return f".. list-table:: {sheet.title}\n   :header-rows: 1\n\n{rows}\n\n{notes}\n"


def _html(sheet: Sheet) -> str:
    def row(texts: Sequence[str], tag: str) -> str:
        cells = "".join(
            f'<{tag} class="{_kind(header, text, sheet.words)}">{escape(text)}</{tag}>'
            for header, text in zip(sheet.headers, texts, strict=True)
        )
        return f"<tr>{cells}</tr>"

    head, lines = row(sheet.headers, "th"), "\n".join(row(line, "td") for line in sheet.lines)
    notes = "\n".join(f"<p>{escape(note)}</p>" for note in sheet.notes)
    caption = f"<caption>{escape(sheet.title)}</caption>" if sheet.title else ""
    return f"<table>{caption}\n<thead>{head}</thead>\n<tbody>\n{lines}\n</tbody></table>\n{notes}"


def _kind(header: str, text: str, words: Sequence[str]) -> str:
    if len(text) > _LONG:
        return "long"
    return "words" if header in words else "number"
