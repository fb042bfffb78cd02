"""Quantized attention: diffusers' own result when off, few levels when on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor

from quest.architectures.attention import AttentionProcessor
from quest.quantization.granularity import PerTensor
from quest.quantization.grid import Grid
from quest.quantization.layers import Switches
from quest.quantization.quantizers import ActivationQuantizer, calibrating
from quest.quantization.steps import Step


def both(attention: Attention, **inputs: Any) -> tuple[Tensor, Tensor]:
    attention.set_processor(AttnProcessor())
    with torch.no_grad():
        expected = attention(**inputs)
        attention.set_processor(AttentionProcessor(Switches()))  # type: ignore[arg-type]
        return attention(**inputs), expected


@pytest.mark.parametrize("rescale", [1.0, 2**0.5])
def test_spatial_attention_equals_diffusers(rescale: float) -> None:
    """As UNet2DModel has it: images, group norm, a residual."""
    torch.manual_seed(0)
    attention = Attention(
        16, heads=2, dim_head=8, norm_num_groups=4, bias=True, residual_connection=True, rescale_output_factor=rescale
    ).eval()
    found, expected = both(attention, hidden_states=torch.randn(3, 16, 4, 4))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("cross", [False, True])
def test_transformer_attention_equals_diffusers(cross: bool, masked: bool) -> None:
    """As UNet2DConditionModel has it: token sequences, a context, a mask of its tokens."""
    torch.manual_seed(0)
    attention = Attention(16, cross_attention_dim=12 if cross else None, heads=2, dim_head=8, bias=False).eval()
    context = torch.randn(3, 5, 12) if cross else None
    tokens = 5 if cross else 9
    mask = torch.zeros(3, 1, tokens) if masked else None
    if mask is not None:
        mask[:, :, -2:] = -10_000
    hidden = torch.randn(3, 9, 16)
    found, expected = both(attention, hidden_states=hidden, encoder_hidden_states=context, attention_mask=mask)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    if masked:
        unmasked, _ = both(attention, hidden_states=hidden, encoder_hidden_states=context)
        assert not torch.allclose(found, unmasked, atol=1e-3), "the mask does something"


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_operands_have_few_levels(bits: int) -> None:
    torch.manual_seed(0)
    step = Step(1, 1)
    step.set(0)
    processor = AttentionProcessor(Switches())
    attention = Attention(16, heads=2, dim_head=8, bias=True).eval()
    attention.set_processor(processor)  # type: ignore[arg-type]
    x = torch.randn(2, 9, 16) * 3
    attention(x)
    assert processor.shapes == {"q": (9, 8), "k": (9, 8), "v": (9, 8), "probabilities": (9, 9)}
    seen: dict[str, Tensor] = {}
    for name, shape in processor.shapes.items():
        grid = Grid(bits, "positive" if name == "probabilities" else "asymmetric")
        quantizer = ActivationQuantizer(shape, grid, PerTensor(), "max", step)
        quantizer.register_forward_hook(lambda _module, _inputs, output, name=name: seen.update({name: output}))
        processor.add_module(name, quantizer)
    with calibrating(attention), torch.no_grad():
        attention(x)
    assert set(seen) == set(processor.shapes)
    for operand in seen.values():
        assert 1 < len(operand.unique()) <= 2**bits
    assert seen["probabilities"].min() >= 0
    assert set(dict(attention.named_modules())) >= {f"processor.{name}" for name in seen}, "part of the state"
