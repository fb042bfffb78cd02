"""What a layer with a kernel does: it quantizes its input and has the kernel multiply the codes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quest.deploy.kernels.integers import common_zero_point, middle_zero_points, wholes
from quest.deploy.packed.layers import ActivationGrid


class Fed(nn.Module):
    """A layer of a grid and a product; a module, so that it can be traced."""

    middle: Tensor | None
    common: Tensor | None

    def __init__(self, grid: ActivationGrid, product: nn.Module):
        super().__init__()
        self.grid, self.product = grid, product
        self.register_buffer("middle", middle_zero_points(grid), persistent=False)
        common = common_zero_point(grid)
        device = grid.all_zero_points().device
        one = None if common is None else torch.full((1,), float(common - grid.grid.low), device=device)
        self.register_buffer("common", one, persistent=False)

    @property
    def plain(self) -> bool:
        """Whether its grid has the same bits at every timestep."""
        return self.grid.bounds is None

    def forward(self, x: Tensor) -> Tensor:
        whole, scale = wholes(self.grid, x)
        code_of_zero = self._code_of_zero(x.device)
        return self.product(whole.add_(code_of_zero).to(torch.uint8), scale, code_of_zero, x.dtype)

    def place(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """At the present timestep: scale (1,), zero point (1,) or (C,), multiples (C,) if there are, and the zero point
        (1,) of the codes that the product gets."""
        scale, multiple = self.grid.scale_and_multiple(device)
        zero_point = self.grid.now(device)[1].flatten()
        return (
            scale.view(1), zero_point, None if multiple is None else multiple.flatten(), self._code_of_zero(device)
        )  # fmt: skip

    def _code_of_zero(self, device: torch.device) -> Tensor:
        """The zero point of codes that fit a byte, (1,)."""
        if self.middle is not None:
            return self.grid.present(self.middle).to(device)
        if self.common is not None:
            return self.common.to(device)
        zero_point, low = self.grid.now(device)[1].view(1), self.grid.grid.low
        return zero_point - low if low else zero_point
