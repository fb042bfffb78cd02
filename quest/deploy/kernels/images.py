"""Parts of a U-Net between integer products: norm, SiLU and codes together, sums in the epilogue.

What a residual block adds has no pass over an image of its own: the embedding of the timestep is part of the second
norm, the shortcut of the second convolution. An image that grows does so as its codes are made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from quest.deploy.kernels import instead, norms
from quest.deploy.kernels.fed import Fed
from quest.deploy.packed.layers import Packed


def give(network: nn.Module, device: torch.device) -> None:
    """Have the parts of a network that can be computed this way by kernels (`instead`). Undone by `take`."""
    for part in network.modules():
        for kind, (can, forward) in _PARTS.items():
            if isinstance(part, kind) and can(part):
                instead.give(part, device, forward)


def take(network: nn.Module) -> None:
    """Have them computed as they were again."""
    for part in network.modules():
        if isinstance(part, tuple(_PARTS)):
            instead.take(part)


def _residual(block: Any, x: Tensor, temb: Tensor | None, *args: Any, **named: Any) -> Tensor | None:
    first, second = fed(block.conv1), fed(block.conv2)
    if block.training or first is None or second is None:
        return None
    added = None
    if block.time_emb_proj is not None:
        assert temb is not None
        added = block.time_emb_proj(temb if block.skip_time_act else block.nonlinearity(temb))
    residual, shortcut = x, block.conv_shortcut
    if shortcut is not None:
        kernel = fed(shortcut)
        residual = shortcut(x) if kernel is None else kernel.image(x)
    y = first.image(x, norms.given(block.norm1, x), active=True)
    return second.image(y, norms.given(block.norm2, y, added), active=True, residual=residual)


def _is_residual(block: Any) -> bool:
    return (
        all(fed(layer) is not None for layer in (block.conv1, block.conv2))
        and all(norms.fits(norm) for norm in (block.norm1, block.norm2))
        and isinstance(block.nonlinearity, nn.SiLU)
        and block.upsample is None
        and block.downsample is None
        and block.time_embedding_norm == "default"
        and block.output_scale_factor == 1
    )


def _grows(part: Any, x: Tensor, output_size: Any = None, *args: Any, **named: Any) -> Tensor | None:
    kernel = fed(part.conv)
    return None if kernel is None or output_size is not None else kernel.image(x, up=2)


def _is_growing(part: Any) -> bool:
    return part.norm is None and part.interpolate and part.name == "conv" and fed(part.conv) is not None


def _norm(norm: Any, x: Tensor) -> Tensor | None:
    if x.ndim != 4:
        return None
    factor, term = norms.given(norm, x)
    return (x * factor[:, :, None, None] + term[:, :, None, None]).to(x.dtype)


_PARTS: dict[type[nn.Module], tuple[Callable[[Any], bool], instead.Forward]] = {
    ResnetBlock2D: (_is_residual, _residual),
    Upsample2D: (_is_growing, _grows),
    nn.GroupNorm: (norms.fits, _norm),
}


def fed(layer: Any) -> Fed | None:
    """What feeds the kernel of a layer, if it is there and takes images."""
    kernel = layer.kernel if isinstance(layer, Packed) else None
    return kernel if isinstance(kernel, Fed) and kernel.takes_images else None
