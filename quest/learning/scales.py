"""Learned step sizes of activations, block by block (Q-Diffusion's released code).

Activation scales are first chosen in one pass of the quantized network over calibration samples of all sampling steps.
Then, unit by unit in execution order, the scales of everything that is quantized in a unit, its attention operands
included, are trained to minimise
    Σ_channels |out_q - out|^2.4, averaged over the rest,
with inputs and targets of the full-precision network. Weights, their rounding and all zero points stay.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from quest.config.learning import ScaleLearningSettings
from quest.graphs import Replayed
from quest.learning import optimizers, reconstruction
from quest.learning.cache import Cache
from quest.learning.calibration import Calibration
from quest.learning.finetuning import (
    calibrate_activations,
    keep_positive,
    predict,
    running_ranges,
    sets_of,
)
from quest.learning.progress import NOT_KEPT, Progress
from quest.learning.reconstruction import Recorder, Unit
from quest.learning.turns import in_turns
from quest.quantization.network import QuantizedNetwork
from quest.quantization.quantizers import ActivationQuantizer

log = logging.getLogger(__name__)

POWER = 2.4  # of the error
MOMENTUM = 0.95  # of running ranges
_RUNNING_BATCH = 64
_FINE = 16  # bits of attention probabilities from which on their scale is left alone


def calibrate_and_learn(
    network: QuantizedNetwork,
    calibration: Calibration,
    settings: ScaleLearningSettings,
    seed: int,
    progress: Progress = NOT_KEPT,
) -> dict[str, Any]:
    """Choose the activation scales, then learn them; returns the notes of `learn_scales`."""
    calibrate_activations(network, calibration)
    if settings.running_statistics:
        follow_ranges(network, calibration, seed)
    return learn_scales(network, calibration, settings, seed, progress)


def learn_scales(
    network: QuantizedNetwork,
    calibration: Calibration,
    settings: ScaleLearningSettings,
    seed: int,
    progress: Progress = NOT_KEPT,
) -> dict[str, Any]:
    """Train the activation scales of each unit in place; of those that ``progress`` has already, take them from it.

    Returns the loss of each unit before and after, and the cost in samples: ``recorded`` calls of the full-precision
    network up to a unit, ``trained`` passes forward and back through a unit.
    """
    data = calibration.evenly(settings.samples)
    groups = sets_of(network, data)
    units = [unit for unit in reconstruction.units(network) if sites_of(unit)]
    losses = {}
    recorder = Recorder(network, units, data, settings.cache_mib, weights=False)
    with network.frozen():
        for number, unit in enumerate(tqdm(units, desc="learn scales", unit="unit", mininterval=5)):
            scales = [site.scale for site in sites_of(unit)]
            if (kept := progress.get(unit.name)) is not None:
                for scale, learned in zip(scales, kept["scales"], strict=True):
                    scale.data.copy_(learned)
                losses[unit.name] = kept["loss"]
                continue
            cache = recorder.record(number)
            generator = torch.Generator().manual_seed(seed * 100_003 + number)
            calibrated = _loss(network, unit, cache, groups)
            learn_unit(network, unit, cache, groups, settings, generator)
            losses[unit.name] = {"calibrated": calibrated, "learned": _loss(network, unit, cache, groups)}
            progress.put(unit.name, {"scales": scales, "loss": losses[unit.name]})
    before, after = (sum(loss[key] for loss in losses.values()) for key in ("calibrated", "learned"))
    log.info("losses of all units: %.4g calibrated, %.4g learned", before, after)
    cost = {"recorded": len(units) * len(data), "trained": len(units) * settings.iterations * settings.batch_size}
    return {"loss": losses, "samples": cost}


def sites_of(unit: Unit) -> list[ActivationQuantizer]:
    """The activation quantizers of a unit whose scales are learned."""
    sites = [module for module in unit.module.modules() if isinstance(module, ActivationQuantizer)]
    return [site for site in sites if site.grid.bits < _FINE]


def learn_unit(
    network: QuantizedNetwork,
    unit: Unit,
    cache: Cache,
    groups: list[Tensor],
    settings: ScaleLearningSettings,
    generator: torch.Generator,
) -> None:
    """Adam on the activation scales of one unit, in place; sets of sampling steps, where there are several, take turns.

    groups: of each set, the samples of ``cache`` that are at its steps. Weights should be frozen.
    """
    with in_turns(sites_of(unit), settings.lr) as turns:

        def step(batch: Tensor) -> tuple[()]:
            args, named, target = cache.take(batch)
            reconstruction.distance(unit.module(*args, **named), target, POWER).backward()
            turns.optimizer.step()
            turns.optimizer.zero_grad()
            keep_positive(turns.scales)
            return ()

        method = type(settings).__module__.rpartition(".")[2]  # config/methods/<method>.py
        replayed = Replayed(step, cache.on_device, setting=f"methods.{method}.batch_size")
        for iteration in range(settings.iterations):
            index = iteration % len(groups)
            members = groups[index]
            batch = members[torch.randint(len(members), (settings.batch_size,), generator=generator)]
            falling = (1 + math.cos(math.pi * iteration / settings.iterations)) / 2
            optimizers.set_rates(turns.optimizer, [settings.lr * falling])
            _enter(network, index)
            turns.use(index)
            replayed(batch.to(cache.device))


def _loss(network: QuantizedNetwork, unit: Unit, cache: Cache, groups: list[Tensor]) -> float:
    """The loss of a unit over all samples, each under the scales of its sampling step."""
    total = 0.0
    for index, members in enumerate(groups):
        _enter(network, index)
        total += reconstruction.error(unit, cache, members, POWER) * len(members)
    return total / cache.samples


def _enter(network: QuantizedNetwork, index: int) -> None:
    """Use the set ``index`` of activation scales."""
    network.set_step(network.step.steps_of(index)[0])


@torch.no_grad()
def follow_ranges(network: QuantizedNetwork, calibration: Calibration, seed: int) -> None:
    """Replace all activation ranges by running means of the extremes over the calibration samples, in random order."""
    data = calibration.samples(len(calibration))
    order = torch.Generator().manual_seed(seed)
    with running_ranges(network, MOMENTUM):
        for members in sets_of(network, data):
            for batch in members[torch.randperm(len(members), generator=order)].split(_RUNNING_BATCH):
                predict(network, data, batch)
