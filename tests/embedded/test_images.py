"""Embedded images."""

from __future__ import annotations

import pytest
import torch

from quest.embedded.images import labelled_images, real_images


def test_digits() -> None:
    images, labels = labelled_images("digits", 16)
    assert images.shape == (1797, 1, 16, 16)
    assert images.dtype == torch.uint8
    assert labels.tolist()[:10] == list(range(10)), "scikit-learn's order"
    assert images.min() == 0
    assert images.max() == 255
    assert images[:, :, :, 0].float().mean() < images[:, :, 8, 8].float().mean(), "light strokes on black"
    assert torch.equal(real_images("digits", 16), images)


def test_size() -> None:
    assert real_images("digits", 8).shape == (1797, 1, 8, 8)


def test_unknown_source() -> None:
    with pytest.raises(ValueError, match=r"real_images: unknown 'digit' \(did you mean 'digits'\?\)"):
        real_images("digit")
