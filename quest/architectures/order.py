"""Modules of a network by the blocks that hold them, and by when one call reaches them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def outermost(network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> dict[str, nn.Module]:
    """Modules of ``kinds`` by name that no other of them holds."""
    found: dict[str, nn.Module] = {}

    def collect(prefix: str, module: nn.Module) -> None:
        for child_name, child in module.named_children():
            name = f"{prefix}.{child_name}".strip(".")
            if isinstance(child, kinds):
                found[name] = child
            else:
                collect(name, child)

    collect("", network)
    return found


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
