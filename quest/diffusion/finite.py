"""Numbers that are not finite are refused where they arise: a cast to pixels would make them black images."""

from __future__ import annotations

import torch
from torch import Tensor


def finite(x: Tensor, what: str) -> Tensor:
    """``x`` itself. Raises ValueError that begins with ``what`` when any of it is NaN or infinite."""
    good = torch.isfinite(x)
    if not good.all():
        raise ValueError(
            f"{what}: {int((~good).sum())} of {x.numel()} numbers are NaN or infinite; nothing after them means "
            "anything, so look at the weights and scales that made them"
        )
    return x
