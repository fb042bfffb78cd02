"""Codes in as few bytes as their bits allow: two to a byte up to 4 bits, one to a byte up to 8; decisions, eight."""

from __future__ import annotations

import torch
from torch import Size, Tensor

from quest.quantization.grid import Grid


def check_codes(codes: Tensor, grid: Grid, what: str) -> None:
    """Raise ValueError when a code lies outside the grid, so when more than 2^bits levels could be in use."""
    low, high = (int(bound) for bound in codes.aminmax())
    if low < grid.low or high > grid.high:
        raise ValueError(f"{what}: codes from {low} to {high}, but {grid.bits} bits hold {grid.low} to {grid.high}")


def pack(codes: Tensor, grid: Grid, what: str) -> Tensor:
    """Codes of any shape to flat uint8; at up to 4 bits the even code is the low half of its byte."""
    if grid.bits > 8:
        raise ValueError(f"{what}: found codes of {grid.bits} bits, expected at most 8 in a checkpoint")
    if grid.levels > 2**grid.bits:
        raise ValueError(f"{what}: found {grid.levels} levels, expected at most {2**grid.bits} in {grid.bits} bits")
    check_codes(codes, grid, what)
    flat = (codes.reshape(-1) - grid.low).to(torch.uint8)
    if grid.bits > 4:
        return flat
    if len(flat) % 2:
        flat = torch.cat([flat, flat.new_zeros(1)])
    return flat[0::2] | flat[1::2] << 4


def unpack(packed: Tensor, grid: Grid, shape: Size, what: str) -> Tensor:
    """Inverse of `pack`: int32 codes of ``shape``. Raises ValueError when the length or a code does not fit."""
    count = shape.numel()
    expected = count if grid.bits > 4 else (count + 1) // 2
    if packed.dtype != torch.uint8 or packed.shape != (expected,):
        raise ValueError(f"{what}: found {tuple(packed.shape)} {packed.dtype}, expected ({expected},) torch.uint8")
    if grid.bits <= 4:
        packed = torch.stack([packed & 15, packed >> 4], 1).reshape(-1)[:count]
    codes = packed.to(torch.int32).reshape(shape) + grid.low
    check_codes(codes, grid, what)
    return codes


def pack_bits(decisions: Tensor) -> Tensor:
    """Bools of any shape to flat uint8, the first in the lowest bit."""
    flat = decisions.reshape(-1).to(torch.uint8)
    flat = torch.cat([flat, flat.new_zeros(-len(flat) % 8)]).view(-1, 8)
    return (flat << torch.arange(8, dtype=torch.uint8, device=flat.device)).sum(1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, shape: Size, what: str) -> Tensor:
    """Inverse of `pack_bits`: bools of ``shape``. Raises ValueError when the length does not fit."""
    count = shape.numel()
    if packed.dtype != torch.uint8 or packed.shape != ((count + 7) // 8,):
        raise ValueError(
            f"{what}: found {tuple(packed.shape)} {packed.dtype}, expected ({(count + 7) // 8},) torch.uint8"
        )
    bits = packed.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=packed.device) & 1
    return bits.reshape(-1)[:count].reshape(shape).bool()
