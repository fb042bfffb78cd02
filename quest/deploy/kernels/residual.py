"""A residual block of a U-Net between two integer products: norm, SiLU and codes together, sums in the epilogue.

What the block adds has no pass over an image of its own: the embedding of the timestep is part of the second norm, the
shortcut of the second convolution.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from quest.deploy.kernels import norms
from quest.deploy.kernels.fed import Fed
from quest.deploy.kernels.triton import Product
from quest.deploy.packed.layers import Packed


def why_not(block: Any) -> str | None:
    """Why a residual block of diffusers cannot be computed this way; None if it can."""
    if any(_fed(block, name) is None for name in ("conv1", "conv2")):
        return "a convolution of it has no kernel of triton"
    if any(not isinstance(norm, nn.GroupNorm) or norm.weight is None for norm in (block.norm1, block.norm2)):
        return "a norm of it is no group norm with weights"
    if not isinstance(block.nonlinearity, nn.SiLU):
        return f"its nonlinearity is {type(block.nonlinearity).__name__}"
    if block.upsample is not None or block.downsample is not None:
        return "it changes the size of the image"
    if block.time_embedding_norm != "default" or block.output_scale_factor != 1:
        return "it scales what the norm or the block gives"
    return None


def give(block: Any) -> None:
    """Have a block that `why_not` has nothing against computed this way, where no gradient is wanted. Undone by
    `take`."""

    def forward(x: Tensor, temb: Tensor | None, *args: Any, **named: Any) -> Tensor:
        first, second = _fed(block, "conv1"), _fed(block, "conv2")
        if x.requires_grad or block.training or first is None or second is None:
            return type(block).forward(block, x, temb, *args, **named)
        added = None
        if block.time_emb_proj is not None:
            assert temb is not None
            added = block.time_emb_proj(temb if block.skip_time_act else block.nonlinearity(temb))
        residual = x if block.conv_shortcut is None else block.conv_shortcut(x)
        return _after(second, block.norm2, _after(first, block.norm1, x), added, residual)

    # On the instance: what computes the network in floats, and learns, knows nothing of kernels.
    block.__dict__["forward"] = forward


def take(block: Any) -> None:
    """Have it computed as it was again."""
    block.__dict__.pop("forward", None)


def _fed(block: Any, name: str) -> Fed | None:
    """What feeds the kernel of a convolution of the block, if it is there and takes bytes."""
    layer = block.get_submodule(name)
    kernel = layer.kernel if isinstance(layer, Packed) else None
    return kernel if isinstance(kernel, Fed) and isinstance(kernel.product, Product) and kernel.plain else None


def _after(
    fed: Fed, norm: nn.GroupNorm, x: Tensor, added: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """A convolution of the norm of x + added, through SiLU; and a residual."""
    product: Any = fed.product
    scale, zero_point, multiple, code_of_zero = fed.place(x.device)
    low, high = fed.grid.grid.low, fed.grid.grid.high
    beside, _, above, _ = product.border
    codes, sums = norms.normed_codes(
        x, norm.weight, norm.bias, added, scale, zero_point, multiple, code_of_zero, norm.num_groups, norm.eps, True,
        [low, high], [beside, above], product.wants_sums,
    )  # fmt: skip
    return product.of_bytes(codes, sums if product.wants_sums else None, scale, code_of_zero, x.dtype, residual)
