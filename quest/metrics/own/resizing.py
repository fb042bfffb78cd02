"""How images become Inception's input of 299×299: as in ADM's evaluator, in pytorch-fid, and in clean-fid.

ADM, the papers' evaluator: TensorFlow 1's bilinear interpolation (`quest.metrics.inception`). pytorch-fid: PyTorch's
bilinear interpolation without antialias. clean-fid (Parmar et al. 2022): Pillow's bicubic filter with antialias,
channel by channel in floating point. FIDs of different resizing are different numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from quest.metrics.extractor import Extractor, Features
from quest.metrics.inception import InceptionExtractor, without_tf32

SIDE = 299


def bilinear(images: Tensor) -> Tensor:
    """images (N, 3, H, W) uint8 as pytorch-fid gives them to the network: (N, 3, 299, 299) float32 in [-1, 1]."""
    return 2 * interpolate(images.float() / 255, size=(SIDE, SIDE), mode="bilinear", align_corners=False) - 1


def bicubic(images: Tensor) -> Tensor:
    """The same as clean-fid gives them, in the range of the network's TensorFlow graph: (value − 128) / 128."""
    planes = images.cpu().flatten(0, 1).float().numpy()
    with ThreadPoolExecutor() as pool:
        resized = np.stack(list(pool.map(_bicubic_plane, planes)))
    sides = torch.from_numpy(resized).view(*images.shape[:2], SIDE, SIDE).to(images.device)
    return (sides - 128) / 128


def _bicubic_plane(plane: np.ndarray) -> np.ndarray:
    resized = Image.fromarray(plane).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(resized).clip(0, 255)


ADM = InceptionExtractor.resize
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {"pytorch-bilinear-299": bilinear, "pil-bicubic-299": bicubic}
RESIZE = {"adm": ADM, "pytorch-fid": "pytorch-bilinear-299", "clean-fid": "pil-bicubic-299"}
"""What results call the resizing of each evaluator."""


class ResizedInception(InceptionExtractor):
    """The network of ``inception`` on images that one of OTHERS has resized."""

    def __init__(self, inception: InceptionExtractor, resize: str):
        vars(self).update(vars(inception))  # the network with its hook, and what the hook keeps
        self.resize = resize

    def _forward(self, images: Tensor) -> Features:
        with without_tf32():
            x = OTHERS[self.resize](images)
            for name, module in self.network.named_children():  # they are in the order of a call
                if name != "fc":
                    x = module(x)
            pooled = x.flatten(1)
            logits = pooled @ self.network.fc.weight.T  # without the bias, as in ADM's evaluator
        return Features(pooled, self._spatial.pop(), logits)


def resized(extractor: Extractor, resize: str | None) -> Extractor:
    """``extractor`` with another resizing, one that results name; its own for None.

    Raises ValueError, naming both, for an extractor that has no such.
    """
    if resize is None or resize == extractor.resize:
        return extractor
    if isinstance(extractor, InceptionExtractor) and resize in OTHERS:
        return ResizedInception(extractor, resize)
    raise ValueError(f"extractor {extractor.name} resizes by {extractor.resize}, not by {resize}")
