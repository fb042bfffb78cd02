"""Codes of b bits one after another without gaps: eight of them in b bytes, the first in the lowest bits."""

from __future__ import annotations

import torch
from torch import Size, Tensor

_GROUP = 8  # codes: the fewest that fill whole bytes whatever their bits


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes from 0 to 2^bits - 1, of any shape, to flat uint8; zeros fill the last group."""
    flat = codes.reshape(-1).long()
    groups = torch.cat([flat, flat.new_zeros(-len(flat) % _GROUP)]).view(-1, _GROUP)
    words = (groups << _offsets(_GROUP, bits, codes)).sum(1, keepdim=True)
    return (words >> _offsets(bits, 8, codes) & 255).to(torch.uint8).reshape(-1)


def unpack(packed: Tensor, bits: int, shape: Size) -> Tensor:
    """Inverse of `pack`: int32 codes of ``shape``."""
    words = (packed.view(-1, bits).long() << _offsets(bits, 8, packed)).sum(1, keepdim=True)
    codes = words >> _offsets(_GROUP, bits, packed) & (1 << bits) - 1
    return codes.to(torch.int32).reshape(-1)[: shape.numel()].view(shape)


def _offsets(count: int, step: int, like: Tensor) -> Tensor:
    """Where in a word of 64 bits each of ``count`` parts begins."""
    return torch.arange(count, device=like.device) * step
