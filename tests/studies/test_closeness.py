"""Closeness of images: the mean, and the error of it."""

from __future__ import annotations

import math

import pytest
import torch

from quest.studies.closeness import closeness


def test_mean_and_error_over_images():
    targets = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    images = targets.clone()
    images[0], images[1] = 51, 102  # 0.2 and 0.4 of the range
    found = closeness(images, targets)
    assert found["images"] == 2
    assert found["mse"] == pytest.approx(0.1)  # of 0.04 and 0.16
    assert found["mse_se"] == pytest.approx(0.06)
    assert found["psnr"] == pytest.approx(10.0)
    assert found["psnr_se"] == pytest.approx(10 / math.log(10) * 0.6)


def test_equal_images_have_no_psnr():
    images = torch.randint(0, 255, (3, 1, 2, 2), dtype=torch.uint8)
    assert closeness(images, images) == {"images": 3, "mse": 0.0, "mse_se": 0.0, "psnr": None, "psnr_se": None}
