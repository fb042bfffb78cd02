"""In which order one call of a network reaches its modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


@torch.no_grad()
def in_call_order(network: nn.Module, example: tuple[Any, ...], modules: Mapping[str, nn.Module]) -> list[str]:
    """Names of ``modules`` in the order in which ``network(*example)`` first reaches them; those it never does are
    left out."""
    order: list[str] = []

    def note(name: str):
        return lambda _module, _inputs: order.append(name)

    handles = [module.register_forward_pre_hook(note(name)) for name, module in modules.items()]
    try:
        network(*example)
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(order))
