"""Speed and memory of the search for weight scales: 80 shrinks of every channel's range by its L2.4 error."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from quest import architectures
from quest.bench import measuring, networks
from quest.quantization.granularity import PerAxis
from quest.quantization.grid import Grid
from quest.quantization.quantizers import WeightQuantizer
from quest.report import text

# Seconds that QuEST's released quantizer took, a Python loop over channels: on one NVIDIA H200, torch 2.11, random
# weights of the same architectures.
PUBLISHED_SECONDS = {"imagenet": 3414.0, "bedrooms": 1597.0}


def run(name: str, bits: int, device: torch.device | str) -> str:
    """A text table: seconds and peak memory of the search over all convolutions and linear layers of a network."""
    network = networks.make(name, device)
    weights = weights_of(network)
    seconds, quantizers = search(weights, bits, device)
    values = {
        "network": name,
        "parameters": f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M",
        "layers": f"{len(weights)}",
        "scales": f"{sum(quantizer.scale.numel() for quantizer in quantizers):,}",
        "bits": f"{bits}",
        "seconds": f"{seconds:.2f}",
        "peak MiB": f"{measuring.peak_mib(device):,.0f}",
        "weights MiB": f"{sum(weight.nbytes for weight in weights) / 2**20:,.0f}",
        "released code, H200, s": f"{PUBLISHED_SECONDS[name]:,.0f}",
    }
    return "\n".join([measuring.machine(device), "", text.table([list(values), list(values.values())])])


def weights_of(network: nn.Module) -> list[Tensor]:
    """Of all convolutions and linear layers."""
    return [network.get_parameter(f"{layer}.weight") for layer in architectures.of(network).roles()]


def search(weights: Sequence[Tensor], bits: int, device: torch.device | str) -> tuple[float, list[WeightQuantizer]]:
    """Seconds of the search over all ``weights``, and what it found."""

    def one(weight: Tensor) -> WeightQuantizer:
        return WeightQuantizer(weight, Grid(bits), PerAxis(0), "mse")

    one(min(weights, key=Tensor.numel))  # the first call on a device prepares its kernels
    measuring.reset_peak(device)
    found: list[WeightQuantizer] = []
    return measuring.seconds(lambda: found.extend(map(one, weights)), device), found
