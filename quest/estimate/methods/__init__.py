"""What the learning of each method costs, a file a method, found by the name of the file (``-`` written ``_``).

A file says of its method
    calls(settings, own, bits) -> Work: what it calls after the network stands on its grids; ``settings`` of the
    dataset, ``own`` of the method, ``bits`` like "w4a4".
It may say too
    caches(settings, own, size) -> list[float]: bytes of each thing that is recorded to learn from, which
    ``own.cache_mib`` is the budget of;
    passed(settings, own, size) -> float: bytes of outputs of units that recording goes on from;
    KINDS: kinds of calls of its own by name, each a function (Calls, batch) -> seconds of one (`quest.estimate.calls`).
    They are steps of training, which do something with every weight.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

from quest.config.methods import METHODS, python_name
from quest.config.values import ConfigError


def of(method: str) -> Any:
    """The file of a method, or of a variant's method. Raises ConfigError for one that has none."""
    name = f"{__name__}.{python_name(method)}"
    if importlib.util.find_spec(name) is None:
        raise ConfigError(
            f"methods: {method}: its calls are not counted; say in quest/estimate/methods/{python_name(method)}.py how "
            "many it makes"
        )
    return importlib.import_module(name)


def kinds() -> dict[str, Callable[[Any, int], float]]:
    """The calls that single methods bring, by name."""
    found: dict[str, Callable[[Any, int], float]] = {}
    for method in METHODS:
        if importlib.util.find_spec(f"{__name__}.{python_name(method)}") is not None:
            found |= getattr(of(method), "KINDS", {})
    return found
