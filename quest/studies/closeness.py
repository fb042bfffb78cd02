"""How close images are to those of the full-precision model on the same seeds, with the error of that number."""

from __future__ import annotations

import math

from torch import Tensor

from quest.metrics.distances import psnr


def closeness(images: Tensor, targets: Tensor) -> dict[str, float | int | None]:
    """Of uint8 images (N, C, H, W), N ≥ 2: mean squared error on the [0, 1] scale, PSNR of that mean in dB (None for
    equal images), each with its standard error over the images."""
    squares = ((images.double() - targets.double()) / 255).square().flatten(1).mean(1)
    mse, error = squares.mean().item(), squares.std().item() / math.sqrt(len(squares))
    return {
        "images": len(images),
        "mse": mse,
        "mse_se": error,
        "psnr": psnr(mse),
        "psnr_se": None if mse == 0 else 10 / math.log(10) * error / mse,
    }
