"""Codes without gaps: every width comes back to the integer, in no more bytes than its bits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quest.deploy.packed import bitstream
from quest.deploy.packed.description import LayerDescription, TablesDescription
from quest.deploy.packed.layers import Tables, pack_layer
from quest.quantization import packing
from quest.quantization.grid import Grid


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


@pytest.mark.parametrize("dense", [False, True])
def test_a_layer_reads_either_way(dense: bool) -> None:
    """Folders of the first format have 3 bits in half a byte."""
    codes = torch.randint(8, (4, 9), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    described = LayerDescription(bits=3, shape=(4, 9), dense=dense)
    layer = pack_layer(nn.Linear(9, 4), described, Tables(TablesDescription(steps=1, rows=1, places=1)))
    packed = bitstream.pack(codes, 3) if dense else packing.pack(codes, Grid(3), "codes")
    assert packed.shape == layer.codes.shape
    layer.codes.data.copy_(packed)
    assert torch.equal(layer.whole_codes(), codes)
