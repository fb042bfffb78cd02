"""The paper's U-Nets have the size that the paper's tables rest on."""

from __future__ import annotations

import pytest
import torch

from quest import architectures
from quest.bench import networks


@pytest.mark.parametrize(
    ("name", "millions"), [("bedrooms", 274.06), ("imagenet", 400.92), ("stable-diffusion", 859.52)]
)
def test_parameters_and_shapes(name: str, millions: float) -> None:
    network = networks.make(name, "meta")
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    assert architectures.of(network).roles(), "every layer has a role"
    x = torch.zeros(2, *networks.shape(name), device="meta")
    assert network(x, torch.zeros(2, device="meta")).sample.shape == x.shape
