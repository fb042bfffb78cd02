"""What a layer with a kernel does: it quantizes its input and has the kernel multiply the codes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quest.deploy.kernels import norms, triton
from quest.deploy.kernels.integers import common_zero_point, middle_zero_points, wholes
from quest.deploy.packed.layers import ActivationGrid


class Fed(nn.Module):
    """A layer of a grid and a product; a module, so that it can be traced.

    Codes are made from tensors, in what a compiler fuses with whatever makes the input. Where the product is a GPU's
    and has a border of zeros, they are made by a kernel (`image`), which writes the border as it goes.
    """

    middle: Tensor | None
    common: Tensor | None

    def __init__(self, grid: ActivationGrid, product: nn.Module):
        super().__init__()
        self.grid, self.product = grid, product
        self.register_buffer("middle", middle_zero_points(grid), persistent=False)
        common, device = common_zero_point(grid), grid.all_zero_points().device
        one = None if common is None else torch.full((1,), float(common - grid.grid.low), device=device)
        self.register_buffer("common", one, persistent=False)

    @property
    def takes_images(self) -> bool:
        """Whether its product takes the bytes that `image` makes."""
        return isinstance(self.product, triton.Product) and not self.product.linear and self.grid.bounds is None

    def forward(self, x: Tensor) -> Tensor:
        product: Any = self.product
        if self.takes_images and any(product.border):
            return self.image(x)
        whole, scale = wholes(self.grid, x)
        return product(whole, scale, self._code_of_zero(x.device), x.dtype)

    def image(
        self,
        x: Tensor,
        norm: tuple[Tensor, Tensor] | None = None,
        *,
        active: bool = False,
        up: int = 1,
        residual: Tensor | None = None,
    ) -> Tensor:
        """The layer of an image x (N, C, H, W), whose codes are made by a kernel.

        norm: the factor and the term of each channel, (N, C) each, that x goes through first; then SiLU where
        ``active``. up: how often each pixel is there, beside and above. residual: added to the output.
        """
        product: Any = self.product
        scale, multiple = self.grid.scale_and_multiple(x.device)
        scale, zero_point = scale.view(1), self.grid.zero_point_now(x.device).flatten()
        code_of_zero, bounds = self._code_of_zero(x.device), [self.grid.grid.low, self.grid.grid.high]
        factor, term = (None, None) if norm is None else norm
        found, sums = norms.codes(
            x, factor, term, scale, zero_point, None if multiple is None else multiple.flatten(), code_of_zero,
            active, up, bounds, list(product.border[1:3]), product.wants_sums,
        )  # fmt: skip
        return product.of_bytes(found, sums, scale, code_of_zero, x.dtype, residual)

    def _code_of_zero(self, device: torch.device) -> Tensor:
        """The zero point of codes that fit a byte, (1,)."""
        if self.middle is not None:
            return self.grid.present(self.middle).to(device)
        if self.common is not None:
            return self.common.to(device)
        zero_point, low = self.grid.zero_point_now(device).view(1), self.grid.grid.low
        return zero_point - low if low else zero_point
