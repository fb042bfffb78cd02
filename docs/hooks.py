"""Lets pages be written as GitHub reads them: a list or a table may follow a line of text at once."""

from __future__ import annotations

import re
from typing import Any

_ITEM = re.compile(r"\s*(?:[-*]|\d+\.) ")
_FENCE = re.compile(r"\s*(```|~~~)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """``markdown`` with the empty line that Python-Markdown wants before a list or a table."""
    lines: list[str] = []
    fenced = False
    for line in markdown.split("\n"):
        before = lines[-1] if lines else ""
        begins = (line.lstrip().startswith("|") and not before.lstrip().startswith("|")) or (
            _ITEM.match(line) and not _ITEM.match(before) and not before.startswith(" ")
        )
        if begins and before.strip() and not fenced and not (line.startswith(" ") and _ITEM.match(line)):
            lines.append("")
        lines.append(line)
        fenced ^= bool(_FENCE.match(line))
    return "\n".join(lines)
