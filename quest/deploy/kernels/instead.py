"""A part of a network that a kernel computes in place of the part's own forward, and how that is undone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[..., Tensor | None]
"""A part and its arguments, to its output; None for what the kernel cannot compute."""


def give(part: nn.Module, device: torch.device, forward: Forward) -> None:
    """Have ``forward`` compute a part on ``device``, where no gradient is wanted. Undone by `take`."""
    # On the instance: what computes the network in floats, and learns, knows nothing of kernels. Partial, since a copy
    # of a closure would compute with what it was copied from.
    part.__dict__["forward"] = partial(_either, forward, part, device)


def take(part: nn.Module) -> None:
    """Have it computed as it was again."""
    part.__dict__.pop("forward", None)


def _either(forward: Forward, part: nn.Module, device: torch.device, *args: Any, **named: Any) -> Tensor:
    tensors = [each for each in (*args, *named.values()) if isinstance(each, Tensor)]
    apart = any(each.requires_grad or each.device != device for each in tensors)
    found = None if apart else forward(part, *args, **named)
    return type(part).forward(part, *args, **named) if found is None else found
