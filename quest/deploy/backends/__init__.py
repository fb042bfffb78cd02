"""What multiplies in a quantized network while images are drawn, a file a backend, found by its name.

A backend has ``ready(checkpoint, denoiser)``, a context manager: within it a `Ready` draws.
Importing this module costs nothing, and what only one backend needs is no part of the code that the other draws by.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import nn


class Ready(NamedTuple):
    """network: called like the model's own, after ``set_step``. notes: what the samples' manifest says of it."""

    network: nn.Module
    notes: dict[str, Any]


def get(name: str) -> Any:
    """The module of a backend, one of `quest.config.evaluation.Backend`."""
    return importlib.import_module(f"{__name__}.{name}")
