"""The order of a call, not of registration."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from quest.architectures.order import in_call_order


class Backwards(nn.Module):
    """Calls its last module first, and its second one never."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.first(self.third(x)))


def test_modules_come_once_in_the_order_of_the_call() -> None:
    network = Backwards()
    assert in_call_order(network, (torch.zeros(1, 2),), dict(network.named_children())) == ["third", "first"]


def test_no_hook_stays_behind_even_where_the_call_fails() -> None:
    network = Backwards()
    with pytest.raises(RuntimeError):
        in_call_order(network, (torch.zeros(1, 3),), dict(network.named_children()))
    assert not any(module._forward_pre_hooks for module in network.modules())
