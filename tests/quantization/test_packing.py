"""Packed codes: exact round trips in the promised number of bytes."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Size

from quest.quantization.grid import Grid, Kind
from quest.quantization.packing import check_codes, pack, pack_bits, unpack, unpack_bits


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("kind", [kind for kind in get_args(Kind) if kind != "legacy_symmetric"])
@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (3, 5, 3, 3), (4, 6)])
def test_round_trip(bits: int, kind: Kind, shape: tuple[int, ...]) -> None:
    grid = Grid(bits, kind)
    torch.manual_seed(bits)
    codes = torch.randint(grid.low, grid.high + 1, shape, dtype=torch.int32)
    codes.view(-1)[0] = grid.low
    codes.view(-1)[-1] = grid.high
    packed = pack(codes, grid, "codes")
    assert packed.dtype == torch.uint8
    assert packed.shape == ((codes.numel() + 1) // 2 if bits <= 4 else codes.numel(),)
    assert torch.equal(unpack(packed, grid, Size(shape), "codes"), codes)


def test_more_levels_than_bits_hold() -> None:
    with pytest.raises(ValueError, match=r"conv\.codes: found 33 levels, expected at most 16 in 4 bits"):
        pack(torch.zeros(3), Grid(4, "legacy_symmetric"), "conv.codes")


def test_layout_of_a_byte() -> None:
    assert pack(torch.tensor([1, 2, 15]), Grid(4), "codes").tolist() == [0x21, 0x0F]
    assert pack_bits(torch.tensor([True, False, True] + [False] * 5 + [True])).tolist() == [0b101, 1]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 65])
def test_decisions_round_trip(count: int) -> None:
    torch.manual_seed(count)
    decisions = torch.rand(count) > 0.5
    packed = pack_bits(decisions)
    assert packed.shape == ((count + 7) // 8,)
    assert torch.equal(unpack_bits(packed, Size((count,)), "up"), decisions)


def test_wrong_length() -> None:
    with pytest.raises(ValueError, match=r"conv\.codes: found \(3,\) torch.uint8, expected \(2,\) torch.uint8"):
        unpack(torch.zeros(3, dtype=torch.uint8), Grid(4), Size((4,)), "conv.codes")
    with pytest.raises(ValueError, match=r"conv\.codes: found \(4,\) torch.int32"):
        unpack(torch.zeros(4, dtype=torch.int32), Grid(8), Size((4,)), "conv.codes")
    with pytest.raises(ValueError, match=r"conv\.up: found \(1,\)"):
        unpack_bits(torch.zeros(1, dtype=torch.uint8), Size((9,)), "conv.up")


@pytest.mark.parametrize("code", [-1, 8])
def test_code_outside_the_grid(code: int) -> None:
    with pytest.raises(ValueError, match="3 bits hold 0 to 7"):
        check_codes(torch.tensor([0, code]), Grid(3), "conv")
    with pytest.raises(ValueError, match="3 bits hold 0 to 7"):
        pack(torch.tensor([0, code]), Grid(3), "conv.codes")


def test_stored_code_outside_the_grid() -> None:
    """Five bits are stored in a byte, which could hold more levels than five bits have."""
    with pytest.raises(ValueError, match=r"conv\.codes: codes from 0 to 32, but 5 bits hold 0 to 31"):
        unpack(torch.tensor([0, 32], dtype=torch.uint8), Grid(5), Size((2,)), "conv.codes")


def test_too_wide_to_pack() -> None:
    with pytest.raises(ValueError, match="9 bits"):
        pack(torch.tensor([0, 300]), Grid(9), "conv.codes")
