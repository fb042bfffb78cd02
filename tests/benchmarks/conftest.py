"""Tiny networks in the place of the paper's: the benchmarks run through in seconds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from diffusers.models.unets.unet_2d import UNet2DModel

from quest.benchmarks import networks


@pytest.fixture
def tiny_networks(monkeypatch: pytest.MonkeyPatch, make_unet: Callable[..., UNet2DModel]) -> None:
    """Both names stand for the tests' 8×8 U-Net."""
    monkeypatch.setattr(networks, "SHAPE", (1, 8, 8))
    for name in networks.NETWORKS:
        monkeypatch.setitem(networks.NETWORKS, name, make_unet)
