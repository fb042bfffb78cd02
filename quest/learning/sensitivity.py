"""How far samples move when the weight of one layer alone is coarse: what layers are given their bits by.

From held-out noise a sample x is drawn in full precision, and x̂ with layer l at b bits in every step:
    s_l(b) = median over trajectories of mean (x̂ - x)².
What a layer errs by alike in every step adds up here as it does in images; to weigh the error of each step alone
missed most of it. Few steps tell layers apart, and are taken by DDIM whatever the sampler. It is measured where
rounding is coarse, at 2, 3 and 4 bits; from there up errors are small and follow the error of the weight, by which
s_l(4) is scaled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from tqdm import tqdm

from quest.config.sampling import SamplerSettings
from quest.diffusion import denoiser as denoisers
from quest.diffusion.denoiser import Outputs
from quest.diffusion.guidance import Guidance
from quest.diffusion.samplers import Sampler
from quest.learning.calibration import Calibration
from quest.learning.progress import NOT_KEPT, Progress
from quest.noise import HELD_OUT, SampleNoise
from quest.quantization.grid import Grid
from quest.quantization.layers import QuantizedLayer
from quest.quantization.network import QuantizedNetwork
from quest.quantization.quantizers import WeightQuantizer

MEASURED = (2, 3, 4)
STEPS, TRAJECTORIES = 10, 5


def calls_of(layers: int, steps: int) -> int:
    """How many samples go through the network while ``layers`` are measured for a sampler of ``steps``."""
    return (layers * len(MEASURED) + 1) * min(STEPS, steps) * TRAJECTORIES


def few_steps(sampler: Sampler) -> SamplerSettings:
    """DDIM along at most STEPS of the timesteps of a sampler, the first and the last among them."""
    chosen = torch.linspace(0, sampler.steps - 1, min(STEPS, sampler.steps)).round().long()
    timesteps = tuple(sampler.timesteps[chosen].tolist())
    return SamplerSettings(
        steps=len(timesteps), timesteps=timesteps, eta=sampler.eta, guidance_scale=sampler.guidance_scale
    )


@torch.no_grad()
def sensitivities(
    network: QuantizedNetwork,
    sampler: Sampler,
    calibration: Calibration,
    names: Sequence[str],
    widths: Sequence[int],
    seed: int,
    progress: Progress = NOT_KEPT,
) -> dict[str, dict[int, float]]:
    """s_l(b) of the layers ``names`` at each of the weight bits ``widths``, in squared units of the sample.

    network: its grids, whose own weight bits do not matter. sampler: of `few_steps`. calibration: for its conditions;
    its states are not looked at. seed: of the chain. Layers that ``progress`` has already are taken from it.
    """
    measured = sorted({*MEASURED} & {*widths}) or [min(widths)]
    found: dict[str, dict[int, float]] = {
        name: {int(bits): error for bits, error in each.items()}
        for name, each in (progress.get("layers") or {}).items()
    }
    layers = network.layers()
    with _unrounded(network):
        outputs, guidance = Outputs(network), calibration.guidance(range(TRAJECTORIES))
        shape, device = calibration.x.shape[2:], calibration.x.device
        samples = _drawn(outputs, sampler, guidance, seed, shape, device)
        for name in tqdm(names, desc="sensitivity", unit="layer", mininterval=5):
            if name not in found:
                layer, errors, of_weight = layers[name], {}, {}
                for bits in widths:
                    coarse = _rounded(network, layer, bits)
                    of_weight[bits] = (coarse - layer.weight).square().sum().item()
                    if bits in measured:
                        layer.use(coarse)
                        moved = _drawn(outputs, sampler, guidance, seed, shape, device) - samples
                        # The median: one that comes out as another sample altogether says nothing of the others.
                        errors[bits] = moved.square().flatten(1).mean(1).median().item()
                layer.use(layer.weight.detach())
                found[name] = _continued(errors, of_weight)
                progress.put(
                    "layers", {name: {str(bits): error for bits, error in found[name].items()} for name in found}
                )
    return found


def _continued(errors: Mapping[int, float], of_weight: Mapping[int, float]) -> dict[int, float]:
    """Errors at all widths: those of the samples where they were measured, scaled by those of the weight above."""
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


def _drawn(
    outputs: Outputs,
    sampler: Sampler,
    guidance: Guidance | None,
    seed: int,
    shape: Sequence[int],
    device: torch.device,
) -> Tensor:
    """Samples (TRAJECTORIES, …) from held-out noise, always the same."""
    noise = SampleNoise("trajectories", seed + HELD_OUT, range(TRAJECTORIES), shape)
    return sampler.sample(denoisers.predictor(outputs, guidance), noise, device)
