"""Where a network itself goes from noise to samples, and what an error on the way does to the sample."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from quest.diffusion import denoiser as denoisers
from quest.diffusion.denoiser import Outputs
from quest.diffusion.samplers import Call
from quest.learning.calibration import Calibration
from quest.noise import SampleNoise
from quest.quantization.network import QuantizedNetwork

_BATCH = 64
_PROBED = 32  # trajectories on which errors are followed
_ERROR = 0.02  # standard deviation of what is added to the predicted noise, whose own is near 1


@torch.inference_mode()
def states(outputs: Outputs, calibration: Calibration, seed: int, count: int) -> Calibration:
    """The states before every sampling step of ``count`` trajectories that the network itself takes, from fresh noise,
    with the conditions of ``calibration``. outputs: of the network, quantized or not."""
    sampler, like = calibration.sampler, calibration.x
    kept = []
    for batch in torch.arange(count).split(_BATCH):
        noise = SampleNoise("trajectories", seed, batch.tolist(), like.shape[2:])
        predict = denoisers.predictor(outputs, calibration.guidance(batch.tolist()))
        *before, _ = sampler.trajectory(predict, noise, like.device)
        kept.append(torch.stack(before))
    guidance = calibration.guidance(range(count))
    contexts = None if guidance is None else guidance.context
    return replace(calibration, x=torch.cat(kept, 1), steps=list(range(sampler.steps)), contexts=contexts)


@torch.inference_mode()
def influence(network: QuantizedNetwork, calibration: Calibration, seed: int) -> Tensor:
    """What an error of the predicted noise at each sampling step does to the sample, (steps,): |Δx|² / |Δε|².

    Random errors are added in full precision, one step at a time; the median over trajectories, since one that comes
    out as another image altogether says nothing of the others.
    """
    sampler, device = calibration.sampler, calibration.x.device
    numbers, shape = range(_PROBED), calibration.x.shape[2:]
    predict = denoisers.predictor(Outputs(network, replayed=True), calibration.guidance(numbers))
    error = _ERROR * SampleNoise("influence", seed, numbers, shape).draw(device)

    def sample(disturbed: int | None) -> Tensor:
        def predicted(x: Tensor, call: Call) -> Tensor:
            noise = predict(x, call)
            return noise + error if call.step == disturbed else noise

        noise = SampleNoise("trajectories", seed, numbers, shape)
        return sampler.sample(predicted, noise, device)

    with network.quantizing(weights=False, activations=False):
        undisturbed = sample(None)
        moved = torch.stack([(sample(step) - undisturbed).square().flatten(1).mean(1) for step in range(sampler.steps)])
    return (moved / error.square().flatten(1).mean(1)).median(1).values
