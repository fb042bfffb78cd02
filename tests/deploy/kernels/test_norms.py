"""Kernels that make the codes of images, against the same in float64: group norms, SiLU, growing, borders and sums."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from quest.deploy.kernels import images, norms

SIZES = {"groups of three": (2, 12, 5, 7, 4), "chunks": (1, 8, 17, 16, 2), "blocks": (2, 72, 3, 3, 8)}
"""Images, channels, height, width, groups of the norm. Chunks are of 128 pixels, blocks of 64 channels."""


def image(size: tuple[int, ...], device: str) -> Tensor:
    """Channels of widths from 1/8 to 1, far from zero: what loses digits where squares are summed as they are."""
    batch, channels, height, width, _ = size
    x = torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(0))
    along = (1, channels, 1, 1)
    return (x * torch.logspace(-3, 0, channels, base=2).view(along) + torch.linspace(-9, 9, channels).view(along)).to(
        device
    )


def assert_norm(size: tuple[int, ...], device: str = "cpu") -> None:
    """x·factor + term is the group norm of x and what is added to its channels."""
    x = image(size, device)
    batch, channels, *_, groups = size
    norm = nn.GroupNorm(groups, channels).to(device)
    norm.weight.data, norm.bias.data = torch.rand_like(norm.weight) + 0.5, torch.randn_like(norm.bias)
    added = torch.linspace(-3, 3, batch * channels, device=device).view(batch, channels)
    for plus in (None, added):
        factor, term = norms.given(norm, x, plus)
        whole = x.double() if plus is None else x.double() + plus.double()[:, :, None, None]
        expected = functional.group_norm(whole, groups, norm.weight.double(), norm.bias.double(), norm.eps)
        found = x.double() * factor.double()[:, :, None, None] + term.double()[:, :, None, None]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


def assert_codes(size: tuple[int, ...], device: str = "cpu") -> None:
    """Every way to make them, exactly; but where float64 lies within float32's reach of the middle of two codes."""
    x = image(size, device)
    batch, channels = size[:2]
    generator = torch.Generator().manual_seed(1)
    factor, term = (torch.randn(2, batch, channels, generator=generator) * 0.7).to(device)
    many = torch.randint(0, 16, (channels,), generator=generator).float().to(device)
    multiple = torch.randint(1, 8, (channels,), generator=generator).float().to(device)
    one = torch.ones(1, device=device)
    normed: Any = ((None, None), (factor, term))
    for norm, active, up, zero_point, by in itertools.product(
        normed, (False, True), (1, 2), (7 * one, many), (None, multiple)
    ):
        scale, border = one * (0.8 if by is None else 0.2), [1, 2] if up == 1 else [0, 1]
        found, sums = norms.codes(x, *norm, scale, zero_point, by, 117 * one, active, up, [0, 15], border, True)
        y = x.double()
        if norm[0] is not None:
            y = y * factor.double()[:, :, None, None] + term.double()[:, :, None, None]
        y = functional.silu(y) if active else y
        step, nothing = scale.double().expand(channels), zero_point.double().expand(channels)[:, None, None]
        step = (step if by is None else step * by)[:, None, None]
        near, times = y / step, 1 if by is None else by.double()[:, None, None]
        expected = (near.round() + nothing).clamp(0, 15).sub(nothing) * times
        tied = ((near - near.floor() - 0.5).abs() < 1e-4).double()
        around = (border[0], border[0], border[1], border[1])
        expected, tied = (
            functional.pad(each.repeat_interleave(up, 2).repeat_interleave(up, 3), around) for each in (expected, tied)
        )
        assert float(tied.mean()) < 0.01
        apart = found.double() - (expected + (117 - 128))
        assert not apart[tied == 0].any()
        assert expected.unique().numel() > 4
        assert torch.equal(sums, found.sum(1, dtype=torch.int32))
        assert torch.equal(sums[:, 0], torch.full_like(sums[:, 0], channels * (117 - 128))), "the border is zero"


@pytest.mark.parametrize(("part", "sizes"), [("assert_norm", list(SIZES)), ("assert_codes", ["groups of three"])])
def test_in_the_interpreter(part: str, sizes: list[str], interpreted: Callable[[str], None]) -> None:
    interpreted(f"import test_norms as t\nfor size in {sizes}:\n    t.{part}(t.SIZES[size])")


def test_elsewhere_a_norm_is_what_it_was() -> None:
    """A network that moved to another device than its kernels are on."""
    norm, x = nn.GroupNorm(4, 12), image(SIZES["groups of three"], "cpu")
    images.give(nn.Sequential(norm), torch.device("cuda"))
    assert torch.equal(norm(x), functional.group_norm(x, 4, norm.weight, norm.bias, norm.eps))


@pytest.mark.gpu
@pytest.mark.parametrize("size", SIZES)
def test_on_a_gpu(size: str) -> None:
    assert_norm(SIZES[size], "cuda")
    assert_codes(SIZES[size], "cuda")
