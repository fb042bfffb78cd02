"""TFMQ-DM (CVPR 2024): temporal features kept by reconstruction, and activation ranges for the finite set of steps.

What a U-Net makes of the timestep, TIB(t) = (g_1(h(t)), …, g_n(h(t))) with the time embedding h and its projection g_i
into each residual block, never sees the image. So
1. the weights start from the "temporal" grouping of `quest.learning.reconstruction`: the TIB is learned first, as one
   unit on its own outputs, L = Σ_i ‖g_i(h(t)) - ĝ_i(ĥ(t))‖², and the blocks that it feeds are then learned around it;
2. finite set calibration: the timesteps of a sampler being few, every activation quantizer has a range for each.
Nothing else is trained.
"""

from __future__ import annotations

import torch

from quest.architectures import Places
from quest.config.methods.tfmq_dm import TFMQDMSettings
from quest.config.values import Bits
from quest.learning.calibration import Calibration
from quest.learning.finetuning import predict, running_ranges, sets_of
from quest.methods import Outcome
from quest.quantization.network import QuantizedNetwork
from quest.quantization.policy import FULL, Policy
from quest.quantization.roles import Role


def quantize(network: QuantizedNetwork, calibration: Calibration, settings: TFMQDMSettings, seed: int) -> Outcome:
    """Calibrate every sampling step on its own samples; the weights are reconstructed already. Notes: the cost."""
    return Outcome({"passes": {"forward": calibrate_finite_set(network, calibration, settings, seed)}})


def paper_policy(bits: Bits, places: Places) -> Policy:
    """Shortcuts, downsampling, the first layer of the time MLP, the first and the last convolution and attention
    products stay full precision, and so do the inputs of the second layer of the time MLP and of the first convolution
    of the first residual block."""
    weights = Bits(bits.weight, FULL.activation)
    return Policy(
        "paper",
        overrides=(
            (Role.SHORTCUT, FULL),
            (Role.DOWNSAMPLE, FULL),
            (places.time_mlp[0], FULL),
            (places.time_mlp[1], weights),
            (Role.FIRST, FULL),
            (places.first_block, weights),
            (Role.LAST, FULL),
        ),
        attention=False,
    )


@torch.no_grad()
def calibrate_finite_set(
    network: QuantizedNetwork, calibration: Calibration, settings: TFMQDMSettings, seed: int
) -> int:
    """Set the range of every activation quantizer for each group of sampling steps, in place; returns the number of
    samples that went through the network.

    A range starts from one random batch and then follows all samples of its step in random order as a moving average
    of their extremes; each batch is quantized with the range that includes it.
    """
    data = calibration.samples(len(calibration))
    order = torch.Generator().manual_seed(seed)
    passes = 0
    for members in sets_of(network, data):
        with running_ranges(network, settings.momentum, first="mse"):
            first = members[torch.randperm(len(members), generator=order)[: settings.batch_size]]
            rest = members[torch.randperm(len(members), generator=order)].split(settings.batch_size)
            for batch in (first, *rest):
                predict(network, data, batch)
                passes += len(batch)
    return passes
