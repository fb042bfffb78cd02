"""What a step of training changed in a network: its state before and after."""

from __future__ import annotations

from torch import Tensor, nn


def state(network: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer, by its name in the network that was quantized."""
    return {name.removeprefix("network."): tensor.clone() for name, tensor in network.state_dict().items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The names of the tensors that are not bit for bit the same."""
    assert list(after) == list(before)
    return {name for name, tensor in before.items() if not tensor.equal(after[name])}
