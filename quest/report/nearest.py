"""The sentence for a name that is not there: how many are, and the three nearest."""

from __future__ import annotations

import difflib
from collections.abc import Collection

_NEAREST = 3


def unknown(what: str, name: str, known: Collection[str]) -> str:
    """Like "no cell 'digits/qest-w4a4' among 130; the nearest are digits/quest-w4a4, …". known: at least one name."""
    near = difflib.get_close_matches(name, known, n=_NEAREST, cutoff=0)
    return f"no {what} {name!r} among {len(known)}; the nearest are {', '.join(near)}"
