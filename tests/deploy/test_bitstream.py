"""Codes without gaps: every width comes back to the integer, in no more bytes than its bits."""

from __future__ import annotations

import pytest
import torch

from quest.deploy.packed import bitstream


@pytest.mark.parametrize("bits", range(2, 8))
@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 1_001])
def test_codes_come_back(bits: int, count: int) -> None:
    codes = torch.randint(2**bits, (count,), generator=torch.Generator().manual_seed(count), dtype=torch.int32)
    packed = bitstream.pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == -(-count // 8) * bits
    assert torch.equal(bitstream.unpack(packed, bits, codes.shape), codes)


def test_the_first_code_is_in_the_lowest_bits() -> None:
    codes = torch.tensor([[5, 1, 0, 0], [0, 0, 0, 7]])
    assert bitstream.pack(codes, 3).tolist() == [0b00001101, 0, 0b11100000]
