"""The expansions of Theorem 3.2: exact where they must be, growing where the printed equation is wrong."""

from __future__ import annotations

import pytest
import torch

from quest.studies import expansion
from quest.studies.expansion import OUTPUT, along
from quest.studies.subject import Subject

K = (1, 2, 4, 8, 16, 32, 64)


@pytest.fixture
def vectors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return tuple(torch.randn(3, 5, dtype=torch.float64) for _ in range(3))  # type: ignore[return-value]


def test_exact_for_a_quadratic_loss_whatever_the_parts(vectors: tuple[torch.Tensor, ...]):
    z, delta, target = vectors
    mix = torch.randn(5, 5, dtype=torch.float64)
    segment = along(lambda x: ((x - target) @ mix).square().sum(), z, delta, 64)
    for parts in K:
        assert segment.first(parts) + segment.second(parts) == pytest.approx(segment.difference, rel=1e-12)


def test_the_printed_second_order_sum_grows_like_a_third_of_the_parts(vectors: tuple[torch.Tensor, ...]):
    z, delta, _ = vectors
    segment = along(lambda x: (x - z).square().sum(), z, delta, 64)
    square = delta.square().sum().item()
    assert segment.difference == pytest.approx(square)
    for parts in K:
        assert segment.second_as_printed(parts) == pytest.approx(square * (parts + 1) * (2 * parts + 1) / (6 * parts))
        assert segment.second(parts) == pytest.approx(square / parts)
        assert segment.first(parts) == pytest.approx(square * (1 - 1 / parts))
    assert segment.second_as_printed(64) == pytest.approx(square * 64 / 3, rel=0.03)


def test_converges_for_another_loss(vectors: tuple[torch.Tensor, ...]):
    z, delta, target = vectors
    segment = along(lambda x: (torch.sin(2 * x) - target).square().sum(), z, delta, 64)
    misses = [abs(segment.first(parts) + segment.second(parts) - segment.difference) for parts in K]
    assert misses[0] > 1e-2 * abs(segment.difference)
    assert misses[-1] < 1e-3 * misses[0]
    assert segment.gradient == pytest.approx(
        (4 * torch.cos(2 * (z + delta)) * (torch.sin(2 * (z + delta)) - target)).norm().item()
    )


def test_parts_that_do_not_divide_the_segment_are_refused(vectors: tuple[torch.Tensor, ...]):
    z, delta, _ = vectors
    with pytest.raises(ValueError, match="3 parts do not divide the 4 of the segment"):
        along(lambda x: x.square().sum(), z, delta, 4).first(3)


def test_on_a_network(subject: Subject, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(expansion, "POINTS", 4)
    rows = expansion.measure(subject)
    assert [(row["weights"], row["bits"]) for row in rows[::6]] == [
        *(("nearest", bits) for bits in ("w8a8", "w6a6", "w4a4")),
        ("reconstructed", "w4a4"),
        ("finetuned", "w4a4"),
    ]
    places = list(dict.fromkeys(row["place"] for row in rows))
    assert len(places) == 2
    assert places[-1] == OUTPUT
    for row in rows:
        if row["place"] == OUTPUT:
            assert row["expansion"] == pytest.approx(row["difference"], rel=1e-9)
    assert len(expansion.chart("tiny", rows).axes) == 3
    nearest = {row["bits"]: row["perturbation"] for row in rows if row["weights"] == "nearest"}
    assert nearest["w8a8"] < nearest["w6a6"] < nearest["w4a4"]
