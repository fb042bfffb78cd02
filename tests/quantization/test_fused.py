"""Fake quantization in one pass against the plain operations: the same values, the same derivatives. On a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quest.quantization import fused
from quest.quantization.grid import Grid, fake_quantize

SHAPES = [
    ((3, 5, 7, 9), (1, 1, 1, 1)),
    ((3, 5, 7, 9), (1, 5, 1, 1)),
    ((50, 70, 33), (1, 1, 33)),
    ((4, 70, 33), (1, 70, 1)),
    ((4, 130), (1, 130)),
    ((2, 64, 64, 64), (1, 64, 1, 1)),
    ((2, 4096, 100), (1, 1, 1)),
    ((4, 6, 8, 8), (4, 6, 1, 1)),  # of each sample its own
]


def test_on_a_cpu_nothing_is_fused() -> None:
    assert fused.layout(torch.ones(2, 3), torch.ones(1, 3)) is None


def results(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> list[Tensor]:
    leaves = x, scale, zero_point = [each.clone().requires_grad_() for each in (x, scale, zero_point)]
    out = fake_quantize(x, scale, zero_point, grid)
    weight = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)]


@pytest.mark.gpu
@pytest.mark.parametrize("grid", [Grid(8), Grid(4), Grid(4, "symmetric"), Grid(2)])
@pytest.mark.parametrize(("shape", "scales"), SHAPES)
def test_it_is_what_the_plain_operations_give(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], scales: tuple[int, ...], grid: Grid
) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(shape, generator=generator, device="cuda") * 3
    x.view(-1)[:3] = torch.tensor([0.0, 1e30, -1e30])
    scale = torch.rand(scales, generator=generator, device="cuda") * 0.5 + 0.05
    zero_point = torch.zeros_like(scale) if grid.kind == "symmetric" else torch.full_like(scale, grid.high // 2)
    assert fused.layout(x, scale) is not None
    ours = results(x, scale, zero_point, grid)
    monkeypatch.setattr(fused, "layout", lambda *_: None)
    plain = results(x, scale, zero_point, grid)
    assert torch.equal(ours[0], plain[0])
    assert torch.equal(ours[1], plain[1])
    for found, expected in zip(ours[2:], plain[2:], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.gpu
def test_what_is_no_number_stays_visible() -> None:
    x = torch.tensor([1.0, torch.nan, torch.inf], device="cuda")
    one = torch.ones(1, device="cuda")
    found = fake_quantize(x, one, one * 0, Grid(4))
    assert found.isnan().tolist() == [False, True, False]
    assert found[2] == 15


@pytest.mark.gpu
def test_what_it_cannot_go_through_is_left_to_the_plain_operations() -> None:
    x = torch.randn(4, 6, 8, device="cuda")
    scale = torch.ones(1, 1, 1, device="cuda")
    assert fused.layout(x.transpose(1, 2), scale) is None
    assert fused.layout(x.half(), scale) is None
    assert fused.layout(x, torch.ones(4, 1, 8, device="cuda")) is None
    turned = fake_quantize(x.transpose(1, 2), scale, scale, Grid(4)).transpose(1, 2)
    assert torch.equal(turned, fake_quantize(x, scale, scale, Grid(4)))
