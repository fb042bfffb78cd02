"""TRAQ, this project's method: finetuning along the trajectories that the quantized network itself takes.

Activations of 4 bits have one scale a tensor and a whole number of it for each channel (`granularity.Multiples`). From
weights with learned rounding, everything that stays as it is in an integer network is trained at once: weights,
biases, norms, and a scale a tensor for each sampling step. A batch has samples of all sampling steps, each of which
takes its own scales, so that no step waits for its turn. What is minimised is
    Σ_t w_t · mean (ε̂ - ε)²,    w_t ∝ I_t^p,
the error of the predicted noise against the full-precision network in the same state; I_t is what an error at step t
does to the finished sample (`quest.learning.trajectories.influence`). Each sample's part goes through a Cauchy loss:
where the network has lost its way it errs by hundreds of times as much, and would decide every step. States come from
the network's own trajectories, which are drawn anew while it learns: that is where it will be when it samples.
Weights are folded onto their codes first, so that small steps change no code by accident, and rates fall to zero.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from quest import architectures
from quest.config.methods.traq import TraqSettings
from quest.config.quantizer import QuantizerSettings
from quest.config.values import width
from quest.diffusion.denoiser import Outputs
from quest.graphs import Replayed
from quest.learning import optimizers, trajectories
from quest.learning.calibration import Calibration, Samples
from quest.learning.finetuning import calibrate_activations, keep_positive
from quest.learning.progress import NOT_KEPT, Progress, Training
from quest.learning.recomputing import Limited
from quest.methods import Outcome
from quest.quantization.network import QuantizedNetwork

SETTING = "methods.traq.batch_size"
_TEACHER_BATCH = 64
_WARM = 10  # steps in which rates rise


def quantizer(settings: TraqSettings, given: QuantizerSettings) -> QuantizerSettings:
    """The grids of a run, with activation scales shared as the method has it."""
    return given.model_copy(update={"activation_granularity": settings.granularity})


def quantize(
    network: QuantizedNetwork,
    calibration: Calibration,
    settings: TraqSettings,
    seed: int,
    progress: Progress = NOT_KEPT,
) -> Outcome:
    """Calibrate, and train. Notes: those of `finetune`."""
    calibrate_activations(network, calibration)
    return Outcome(finetune(network, calibration, settings, seed, progress) if settings.passes else {"passes": {}})


def finetune(
    network: QuantizedNetwork,
    calibration: Calibration,
    settings: TraqSettings,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Train everything in place. Notes: the mean loss between two draws of states, optimizer steps, influence of steps,
    samples that passed the network."""
    teacher = copy.deepcopy(network)  # before any weight moves
    weights = torch.ones(network.step.steps)
    if settings.influence:
        found = trajectories.influence(network, calibration, seed) ** settings.influence
        weights = (found / found.mean()).cpu()
    if settings.folded:
        for layer in network.layers().values():
            layer.fold()
    groups = trained(network, settings)
    history = train(network, teacher, calibration, settings, groups, weights, seed, progress)
    draws = len(history) if settings.draws else 0
    drawn = draws * settings.trajectories * calibration.halves * len(calibration.sampler.calls())
    steps = _steps(settings)
    return {
        "loss": history,
        "optimizer_steps": {"traq": steps},
        "trained_share": 1.0,
        "step_weights": weights.tolist(),
        "passes": {"trained": steps * settings.batch_size, "drawn": 2 * drawn},
    }


def cauchy(errors: Tensor, medians: float) -> Tensor:
    """c · log(1 + e / c) of squared errors (n,), c so many times their median: as they are where they are small, by
    their logarithm where they are not. 0 medians: as they are."""
    if not medians:
        return errors
    median = errors.detach().sort().values[(len(errors) - 1) // 2]
    c = (medians * median).clamp(min=torch.finfo(errors.dtype).tiny)
    return c * torch.log1p(errors / c)


def trained(network: QuantizedNetwork, settings: TraqSettings) -> list[dict[str, Any]]:
    """All that is trained, as groups of parameters with their rates."""
    weight_lr = settings.weight_lr[width(network.recipe.bits.activation)]
    groups: list[dict[str, Any]] = []
    biases: list[nn.Parameter] = []
    for layer in network.layers().values():
        scale = torch.cat([part.scale.flatten() for part, _ in layer.weight_parts()]).mean().item()
        groups.append({"params": [layer.weight], "lr": weight_lr * scale})
        biases += [] if layer.bias is None else [layer.bias]
    norms = [m for m in network.network.modules() if isinstance(m, nn.GroupNorm | nn.LayerNorm)]
    others = [*biases, *(parameter for norm in norms for parameter in norm.parameters())]
    groups.append({"params": others, "lr": settings.bias_lr})
    groups += [
        {"params": [site.scale], "lr": settings.scale_lr * site.scale.detach().mean().item()}
        for site in network.sites().values()
    ]
    return groups


def train(
    network: QuantizedNetwork,
    teacher: QuantizedNetwork,
    calibration: Calibration,
    settings: TraqSettings,
    groups: list[dict[str, Any]],
    weights: Tensor,
    seed: int,
    progress: Progress,
) -> list[float]:
    """Train ``groups`` in place; returns the mean loss between two draws of states. What ``progress`` has is done."""
    device = calibration.x.device
    rates, total = [group["lr"] for group in groups], _steps(settings)
    parameters = [parameter for group in groups for parameter in group["params"]]
    optimizer = optimizers.adamw(groups, 0.0)
    scales = [site.scale for site in network.sites().values()]
    order = torch.Generator().manual_seed(seed)
    weights = weights.to(device)
    network.set_step(0)  # samples bring their own

    draws = rounds(settings)
    data, targets = _states(network, teacher, calibration, settings, seed, 0)
    steps_of = data.steps.to(device)

    @partial(Limited, network, setting=SETTING)
    def loss_of(batch: Tensor) -> Tensor:
        with network.step.each(steps_of[batch]):
            noise = architectures.predict(network, data.inputs(batch))
        errors = (noise - targets[batch]).square().flatten(1).mean(1)
        return cauchy(weights[steps_of[batch]] * errors, settings.cauchy).mean()

    def step(batch: Tensor) -> tuple[Tensor, ...]:
        loss = loss_of(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        keep_positive([scale.data for scale in scales])
        return (loss.detach(),)

    replayed = Replayed(step, setting=SETTING)
    training, history = Training(parameters, [optimizer], order), []
    if (kept := progress.get("traq")) is not None:
        training.resume(kept["training"])
        history = kept["history"]
    for number in range(len(history), draws):
        if number:
            fresh, found = _states(network, teacher, calibration, settings, seed, number)
            data.x.copy_(fresh.x)
            targets.copy_(found)
        first, last = total * number // draws, total * (number + 1) // draws
        losses, batches = [], _batches(len(data), settings.batch_size, order)
        with _training(parameters):
            for count, batch in zip(range(first, last), batches, strict=False):
                share = min(1.0, (count + 1) / _WARM) * (1 + math.cos(math.pi * count / total)) / 2
                optimizers.set_rates(optimizer, [rate * share for rate in rates])
                losses += replayed(batch.to(device))
        history.append(torch.stack(losses).mean().item())
        progress.put("traq", {"training": training.state(), "history": history})
    return history


def _steps(settings: TraqSettings) -> int:
    return max(1, settings.passes // settings.batch_size)


def rounds(settings: TraqSettings) -> int:
    """Into how many parts the training falls, each on states of its own: as `draws` says, but none without a step."""
    return min(max(1, settings.draws), _steps(settings))


def _states(
    network: QuantizedNetwork,
    teacher: QuantizedNetwork,
    calibration: Calibration,
    settings: TraqSettings,
    seed: int,
    number: int,
) -> tuple[Samples, Tensor]:
    """What is trained on until the next draw, and the teacher's noise for it."""
    drawn = calibration
    if settings.draws:
        with network.frozen():
            own = Outputs(network, replayed=True)
            drawn = trajectories.states(own, calibration, seed + 1_000_003 * number, settings.trajectories)
    data = drawn.samples(settings.trajectories * drawn.halves)
    data = Samples(data.x.clone(), data.timesteps, data.steps, data.contexts, data.context_of)
    teacher.set_step(0)
    with torch.no_grad(), teacher.quantizing(weights=False, activations=False):
        batches = torch.arange(len(data), device=data.x.device).split(_TEACHER_BATCH)
        return data, torch.cat([architectures.predict(teacher, data.inputs(batch)) for batch in batches])


def _batches(samples: int, size: int, order: torch.Generator) -> Iterator[Tensor]:
    """Batches without end, every sample once before any comes again; all of the same size."""
    size = min(size, samples)
    while True:
        for batch in torch.randperm(samples, generator=order).split(size):
            if len(batch) == size:
                yield batch


@contextmanager
def _training(parameters: list[nn.Parameter]) -> Iterator[None]:
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False).grad = None
