"""The two products of an attention on its grids, in one kernel: nothing of tokens × tokens is written to memory.

Codes less their zero points are whole numbers, which float16 holds exactly up to 2048, and their sums are exact in
float32 up to 2^24. So the tensor cores that multiply float16 multiply whole numbers. A probability has its code once
the sum of its row is known, so that the scores are computed twice: for the sum, and for the codes.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from torch import Tensor

from quest.deploy.kernels import instead
from quest.deploy.kernels.integers import wholes
from quest.deploy.packed.layers import ActivationGrid
from quest.quantization.attention import QuantizedAttention

KERNEL = "triton"
"""The kernel of layers that this one goes with."""
_OPERANDS = ("q", "k", "v", "probabilities")
_WIDEST = 256  # channels of a head that a block holds
_LARGEST = 2048  # the whole numbers up to it are exact in float16


def why_not(products: QuantizedAttention) -> str | None:
    """Why the kernel cannot compute an attention; None if it can."""
    for name in _OPERANDS:
        grid = getattr(products, name, None)
        if not isinstance(grid, ActivationGrid):
            return f"its {name} is not on a grid"
        if len(grid.site.scales) > 1:
            return f"its {name} has {len(grid.site.scales)} scales at a timestep, where the kernel takes one"
        if grid.bounds is not None:
            return f"its {name} has bits of its own at some timesteps"
        if (most := _most(grid)) > _LARGEST:
            return f"codes of its {name} are up to {most} from zero, where the kernel takes {_LARGEST}"
    probabilities = _grid(products, "probabilities")
    if probabilities.grid.kind != "positive" or probabilities.site.multiple_at is not None:
        return "its probabilities have zero points, or multiples, of their own"
    return None


def give(products: QuantizedAttention, device: torch.device) -> None:
    """Have an attention that `why_not` has nothing against computed by the kernel (`instead`)."""
    instead.give(products, device, _forward)


def _forward(
    products: QuantizedAttention, q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None
) -> Tensor | None:
    if mask is not None or q.shape[-1] > _WIDEST:
        return None
    (q_codes, q_scale), (k_codes, k_scale), (v_codes, v_scale) = (
        wholes(_grid(products, name), x) for name, x in zip("qkv", (q, k, v), strict=True)
    )
    probabilities = _grid(products, "probabilities")
    p_scale, _ = probabilities.scale_and_multiple(q.device)
    scales = q_scale, k_scale, v_scale, p_scale.view(1)
    codes = (each.to(torch.float16) for each in (q_codes, k_codes, v_codes))
    return integer_attention(*codes, *scales, scale, probabilities.grid.high, q.dtype)


def _grid(products: QuantizedAttention, name: str) -> ActivationGrid:
    found = products.get_submodule(name)
    assert isinstance(found, ActivationGrid)
    return found


def _most(grid: ActivationGrid) -> int:
    """The largest |code - zero point|, times its multiple, of any timestep."""
    found = grid.all_products()
    if found is None:
        low, high = (int(bound) for bound in grid.all_zero_points().aminmax())
        return max(abs(grid.grid.high - low), abs(grid.grid.low - high))
    return max(int(bound.abs().max()) for bound in found)


@torch.library.custom_op("quest::integer_attention", mutates_args=())
def integer_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_scale: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    p_scale: Tensor,
    scale: float,
    most: int,
    dtype: torch.dtype,
) -> Tensor:
    """softmax(q·kᵀ · scale)·v, (heads, tokens, d) ``dtype``, its probabilities on the grid of p_scale and codes 0 to
    ``most``.

    q (heads, tokens, d), k and v (heads, context, d): whole numbers in float16; their scales and p_scale (1,) float32.
    """
    kernels: Any = importlib.import_module("quest.deploy.kernels._triton_kernel")
    q, k, v = (each.contiguous() for each in (q, k, v))
    heads, tokens, width = q.shape
    y = torch.empty(q.shape, dtype=dtype, device=q.device)
    block = kernels.attention_block(tokens, k.shape[1], width)
    with torch.cuda.device_of(q):
        kernels.attention[(heads * -(-tokens // block["BLOCK_M"]),)](
            q, k, v, q_scale, k_scale, v_scale, p_scale, y, tokens, k.shape[1], width, scale / math.log(2), most,
            **block,
        )  # fmt: skip
    return y


@integer_attention.register_fake
def _(q: Tensor, *others: Any) -> Tensor:
    return torch.empty(q.shape, dtype=others[-1], device=q.device)
