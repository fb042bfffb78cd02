"""The training loop: what it ends with, and a replayed step against one that is taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from quest.embedded.training.optimization import fit


def trained(device: str, replayed: bool, steps: int = 40, after: list[int] | None = None) -> tuple[nn.Module, float]:
    """A small network fitted to a fixed batch, so that nothing but the way of taking steps can differ."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 1)).to(device)
    x = torch.randn(64, 8, device=device)
    y = x.square().mean(1, keepdim=True)

    def loss_of(_step: int) -> Tensor:
        return nn.functional.mse_loss(network(x), y)

    calls = [] if after is None else after
    losses = fit(network, loss_of, "test", steps, lr=1e-2, after=calls.append, replayed=replayed)
    assert len(losses) == min(steps, 50)
    return network, losses[-1]


def test_training_lowers_the_loss_and_reports_every_step() -> None:
    calls: list[int] = []
    _, first = trained("cpu", replayed=False, steps=1)
    _, last = trained("cpu", replayed=False, steps=200, after=calls)
    assert last < first / 5
    assert calls == list(range(200))


def test_a_cpu_replays_nothing() -> None:
    """Asking for it costs nothing where there is no GPU."""
    (taken, a), (replayed, b) = trained("cpu", replayed=False), trained("cpu", replayed=True)
    assert a == b
    for ours, theirs in zip(taken.parameters(), replayed.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.gpu
def test_a_replayed_step_is_the_step_itself() -> None:
    (taken, a), (replayed, b) = trained("cuda", replayed=False), trained("cuda", replayed=True)
    assert a == pytest.approx(b, rel=1e-4)
    for ours, theirs in zip(taken.parameters(), replayed.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    network = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="test: the loss is nan after 3 steps"):
        fit(network, lambda _step: network(torch.tensor([[float("nan")]])).sum(), "test", 3, lr=1.0)
