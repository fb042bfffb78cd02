"""How far samples move when the weight of one layer alone is coarse: what layers are given their bits by.

On held-out states of full precision, at a few sampling steps t, everything else being in full precision:
    s_l(b) = Σ_t w_t · mean (ε̂_t - ε_t)²,
with ε̂ the noise predicted with layer l at b bits, guidance included, and w_t what an error of the predicted noise at
step t does to the sample, |Δx|² / |Δε|², measured too. It is measured where rounding is coarse, at 2, 3 and 4 bits;
from there up errors are small and follow the error of the weight, by which s_l(4) is scaled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from quest.diffusion import denoiser as denoisers
from quest.diffusion.denoiser import Outputs
from quest.diffusion.guidance import Guidance
from quest.diffusion.samplers import Call, Sampler
from quest.learning import trajectories
from quest.learning.calibration import Calibration
from quest.learning.progress import NOT_KEPT, Progress
from quest.noise import HELD_OUT, SampleNoise
from quest.quantization.grid import Grid
from quest.quantization.layers import QuantizedLayer
from quest.quantization.network import QuantizedNetwork
from quest.quantization.quantizers import WeightQuantizer

MEASURED = (2, 3, 4)
STEPS, STATES, PROBED = 8, 4, 8
"""Sampling steps that are looked at, states of each, and trajectories on which an error of a step is followed."""
_ERROR = 0.02  # standard deviation of what is added to the predicted noise, whose own is near 1


class _States(NamedTuple):
    """Held-out states at one sampling step. weight: of an error there; x: (STATES, C, H, W); noise: predicted in full
    precision."""

    call: Call
    weight: float
    x: Tensor
    noise: Tensor


def calls_of(layers: int, steps: int) -> int:
    """How many samples go through the network while ``layers`` are measured for a sampler of ``steps``."""
    chosen = min(STEPS, steps)
    return layers * len(MEASURED) * chosen * STATES + (chosen + 1) * steps * PROBED + steps * STATES


@torch.no_grad()
def sensitivities(
    network: QuantizedNetwork,
    calibration: Calibration,
    names: Sequence[str],
    widths: Sequence[int],
    seed: int,
    progress: Progress = NOT_KEPT,
) -> dict[str, dict[int, float]]:
    """s_l(b) of the layers ``names`` at each of the weight bits ``widths``, in squared units of the sample.

    network: its grids, whose own weight bits do not matter. calibration: for its sampler and conditions; its states are
    not looked at. seed: of the chain. Layers that ``progress`` has already are taken from it.
    """
    measured = sorted({*MEASURED} & {*widths}) or [min(widths)]
    found: dict[str, dict[int, float]] = {
        name: {int(bits): error for bits, error in each.items()}
        for name, each in (progress.get("layers") or {}).items()
    }
    layers = network.layers()
    with _unrounded(network):
        outputs, guidance = Outputs(network), calibration.guidance(range(STATES))
        held_out = list(_held_out(outputs, calibration, guidance, seed))
        for name in tqdm(names, desc="sensitivity", unit="layer", mininterval=5):
            if name not in found:
                layer, errors, of_weight = layers[name], {}, {}
                for bits in widths:
                    coarse = _rounded(network, layer, bits)
                    of_weight[bits] = (coarse - layer.weight).square().sum().item()
                    if bits in measured:
                        layer.use(coarse)
                        errors[bits] = _error(outputs, guidance, held_out)
                layer.use(layer.weight.detach())
                found[name] = _continued(errors, of_weight)
                progress.put(
                    "layers", {name: {str(bits): error for bits, error in found[name].items()} for name in found}
                )
    return found


def _continued(errors: Mapping[int, float], of_weight: Mapping[int, float]) -> dict[int, float]:
    """Errors at all widths: those of the output where they were measured, scaled by those of the weight above."""
    last = max(errors)
    share = errors[last] / of_weight[last] if of_weight[last] else 0.0
    return {bits: errors.get(bits, share * error) for bits, error in of_weight.items()}


def _rounded(network: QuantizedNetwork, layer: QuantizedLayer, bits: int) -> Tensor:
    """The weight of a layer rounded to the nearest of ``bits``, in the layout that its network has."""
    search = network.recipe.quantizer.weight_search
    parts = [
        WeightQuantizer(weight, Grid(bits), quantizer.granularity, search)(weight)
        for quantizer, weight in layer.weight_parts()
    ]
    return torch.cat(parts, 1)


@contextmanager
def _unrounded(network: QuantizedNetwork) -> Iterator[None]:
    """Within, all layers compute in full precision, but those that are told to `QuantizedLayer.use` another weight."""
    layers = network.layers().values()
    with network.quantizing(weights=True, activations=False):
        try:
            for layer in layers:
                layer.use(layer.weight.detach())
            yield
        finally:
            for layer in layers:
                layer.unfreeze()


def _held_out(outputs: Outputs, calibration: Calibration, guidance: Guidance | None, seed: int) -> Iterator[_States]:
    sampler, device = calibration.sampler, calibration.x.device
    steps = torch.linspace(0, sampler.steps - 1, min(STEPS, sampler.steps)).round().int().tolist()
    states = trajectories.states(outputs, calibration, seed + HELD_OUT, STATES).x
    predict = denoisers.predictor(outputs, guidance)
    calls = {call.step: call for call in reversed(sampler.calls())}  # the first of each step
    about = calibration.guidance(range(PROBED))
    noise = SampleNoise("influence", seed + HELD_OUT, range(PROBED), calibration.x.shape[2:])
    error = _ERROR * noise.draw(device)
    undisturbed = _sample(outputs, sampler, about, seed, None, error)
    for step in steps:
        moved = _sample(outputs, sampler, about, seed, step, error) - undisturbed
        shares = moved.square().flatten(1).mean(1) / error.square().flatten(1).mean(1)
        # The median: one that comes out as another sample altogether says nothing of the others.
        weight = shares.median().item() * sampler.steps / len(steps)
        x = states[step]
        yield _States(calls[step], weight, x, predict(x, calls[step]))


def _sample(
    outputs: Outputs, sampler: Sampler, guidance: Guidance | None, seed: int, disturbed: int | None, error: Tensor
) -> Tensor:
    """Samples, of which the predicted noise at one step has an ``error`` added."""
    noise = SampleNoise("trajectories", seed + HELD_OUT, range(PROBED), error.shape[1:])
    predict, walk = denoisers.predictor(outputs, guidance), sampler.walk(noise, error.device)
    for call in sampler.calls():
        predicted = predict(walk.x, call)
        walk.step(call, predicted + error if call.step == disturbed else predicted)
    return walk.x


def _error(outputs: Outputs, guidance: Guidance | None, held_out: Sequence[_States]) -> float:
    predict = denoisers.predictor(outputs, guidance)
    return sum(each.weight * (predict(each.x, each.call) - each.noise).square().mean().item() for each in held_out)
