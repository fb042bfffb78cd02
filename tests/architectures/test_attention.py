"""Quantized attention: diffusers' own result without grids, to the last bit when off; few levels on grids."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import (
    Attention,
    AttnAddedKVProcessor,
    AttnProcessor2_0,
    JointAttnProcessor2_0,
    SlicedAttnProcessor,
)
from diffusers.models.transformers.transformer_flux import FluxAttention
from torch import Tensor

from quest.architectures.attention import quantize_products
from quest.quantization.granularity import PerTensor
from quest.quantization.grid import Grid
from quest.quantization.layers import Switches
from quest.quantization.quantizers import ActivationQuantizer, calibrating
from quest.quantization.steps import Step


def both(attention: Any, **inputs: Any) -> tuple[Any, Any]:
    """What an attention gives by our processor, no operand on a grid, and by diffusers'."""
    switches = Switches()
    with torch.no_grad():
        expected = attention(**inputs)
        quantize_products("attention", attention, switches)
        found = attention(**inputs)
        switches.activations = False
        for off, plain in zip(tensors(attention(**inputs)), tensors(expected), strict=True):
            assert torch.equal(off, plain)
        return found, expected


def tensors(output: Any) -> tuple[Tensor, ...]:
    return (output,) if isinstance(output, Tensor) else output


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


@pytest.mark.parametrize("norm", [None, "rms_norm"])
@pytest.mark.parametrize("kind", ["joint", "last", "alone"])
def test_joint_attention_equals_diffusers(kind: str, norm: str | None) -> None:
    """As Stable Diffusion 3 has it: with a context, which its last block drops, and as the second one of a block."""
    torch.manual_seed(0)
    added: dict[str, Any] = {} if kind == "alone" else {"added_kv_proj_dim": 16, "context_pre_only": kind == "last"}
    processor: Any = JointAttnProcessor2_0()
    attention = Attention(
        16, heads=2, dim_head=8, out_dim=16, bias=True, processor=processor, qk_norm=norm, **added
    ).eval()
    context = {} if kind == "alone" else {"encoder_hidden_states": torch.randn(3, 5, 16)}
    found, expected = both(attention, hidden_states=torch.randn(3, 9, 16), **context)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert [tuple(each.shape) for each in tensors(found)] == [(3, 9, 16), (3, 5, 16)][: len(tensors(found))]


@pytest.mark.parametrize("streams", [1, 2])
def test_rotated_attention_equals_diffusers(streams: int) -> None:
    """As Flux has it: two streams with layers of their own, or one whose output is a part of another layer's input."""
    torch.manual_seed(0)
    added: dict[str, Any] = {"added_kv_proj_dim": 16} if streams == 2 else {"pre_only": True}
    attention = FluxAttention(16, heads=2, dim_head=8, out_dim=16, bias=True, **added).eval()
    context = {"encoder_hidden_states": torch.randn(3, 5, 16)} if streams == 2 else {}
    angles = torch.rand(9 + 5 * (streams - 1), 8)
    hidden = torch.randn(3, 9, 16)
    found, expected = both(attention, hidden_states=hidden, image_rotary_emb=(angles.cos(), angles.sin()), **context)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    still, _ = both(attention, hidden_states=hidden, **context)
    assert not torch.allclose(tensors(found)[0], tensors(still)[0], atol=1e-3), "the rotation does something"


def test_sliced_attention_is_the_same_and_others_are_refused() -> None:
    attention: Any = Attention(16, heads=2, dim_head=8)
    attention.set_processor(SlicedAttnProcessor(1))
    assert isinstance(quantize_products("attention", attention, Switches()).plain, AttnProcessor2_0)
    attention.set_processor(AttnAddedKVProcessor())
    with pytest.raises(
        ValueError, match=r"^mid\.attention: its attention is computed by AttnAddedKVProcessor; expected "
    ):
        quantize_products("mid.attention", attention, Switches())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_operands_have_few_levels(bits: int) -> None:
    torch.manual_seed(0)
    step = Step(1, 1)
    step.set(0)
    attention = Attention(16, heads=2, dim_head=8, bias=True).eval()
    processor = quantize_products("attention", attention, Switches())
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
