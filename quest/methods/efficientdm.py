"""EfficientDM (ICLR 2024): quantization-aware low-rank adapters and temporal activation scales, distilled without data.

1. QALoRA: every layer gets an adapter whose product is added to its weight before the weight quantizer,
       Ŵ = s · (clip(round((W + B·A) / s) + z) - z),
   so that it ends in the integer codes and nothing of it is left at inference. W is the layer's own dequantized codes
   (base "int", released) or its original weight ("fp").
2. Scale-aware learning: an integer base moves only where |B·A| exceeds s/2, so a layer's adapter learns at a rate in
   proportion to its mean s.
3. TALSQ: every activation quantizer learns one scale and one zero point for each sampling step.
The loss is ‖ε̂ - ε‖² on the states of the full-precision teacher's own trajectories from fresh noise, with an optimizer
step at every sampling step. Trained by AdamW: A and B, the weight scales, TALSQ; learning rates fall linearly to 0. It
starts from weights rounded to nearest, as in the paper, or with learned rounding.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from tqdm import tqdm

from quest.architectures import Places
from quest.config.methods.efficientdm import EfficientDMSettings
from quest.config.values import Bits
from quest.diffusion.denoiser import Outputs, predictor
from quest.diffusion.finite import finite
from quest.graphs import Replayed
from quest.learning import optimizers
from quest.learning.calibration import Calibration
from quest.learning.finetuning import calibrate_activations, keep_positive, predict, sets_of
from quest.learning.progress import NOT_KEPT, Progress, Training
from quest.learning.recomputing import Limited
from quest.methods import Outcome
from quest.noise import SampleNoise
from quest.quantization import grid
from quest.quantization.adapters import LowRank
from quest.quantization.layers import QuantizedLayer
from quest.quantization.network import QuantizedNetwork
from quest.quantization.policy import EIGHT, FULL, Policy
from quest.quantization.quantizers import ActivationQuantizer
from quest.quantization.roles import Role

log = logging.getLogger(__name__)
SETTING = "methods.efficientdm.batch_size"


def quantize(
    network: QuantizedNetwork,
    calibration: Calibration,
    settings: EfficientDMSettings,
    seed: int,
    progress: Progress = NOT_KEPT,
) -> Outcome:
    """Initialise the grids, attach adapters, distil, merge. Notes: the loss before, during and after, and its cost."""
    teacher = copy.deepcopy(network)  # adapters will change the weights that the student holds
    if settings.weight_search == "max":
        for layer in network.layers().values():
            span_extremes(layer)
    calibrate_activations(network, calibration)
    layers, sites = trained_layers(network), trained_sites(network)
    generator = torch.Generator().manual_seed(seed)
    adapters = {name: attach_adapter(layer, settings, generator) for name, layer in layers.items()}
    groups = parameter_groups(layers, adapters, sites, settings)
    with teacher.quantizing(weights=False, activations=False):
        before = noise_error(network, teacher, calibration)
        history, floored = distil(network, teacher, calibration, groups, settings, seed, progress)
        merge_adapters(layers.values())
        for site in sites.values():
            site.zero_point.round_()
        after = noise_error(network, teacher, calibration)
    passes = settings.trajectories * len(calibration.sampler.calls()) * settings.batch_size
    notes = {
        "loss": {"before": before, "after": after, "trajectories": history},
        "passes": {"teacher_forward": passes, "student_forward": passes, "student_backward": passes},
        "scales_floored": floored,
    }
    return Outcome(notes)


def paper_policy(bits: Bits, places: Places) -> Policy:
    """Shortcuts, downsampling and attention products stay full precision; the time MLP, the first and the last
    convolution have 8 bits and are not trained. (Attention layers are quantized, as in the released code, whose
    unconditional latent models have them as Conv1d and leave those out.)"""
    return Policy(
        "paper",
        overrides=(
            (Role.SHORTCUT, FULL),
            (Role.DOWNSAMPLE, FULL),
            (Role.TIME_MLP, EIGHT),
            (Role.FIRST, EIGHT),
            (Role.LAST, EIGHT),
        ),
        attention=False,
    )


def trained_layers(network: QuantizedNetwork) -> dict[str, QuantizedLayer]:
    """Layers at the bits of the run: the policy's exceptions keep what they start with."""
    policy = network.recipe.policy
    return {name: layer for name, layer in network.layers().items() if not policy.excepts(name, layer.role)}


def trained_sites(network: QuantizedNetwork) -> dict[str, ActivationQuantizer]:
    """Activation quantizers but those of layers that are not trained."""
    fixed = tuple(f"{name}.input_quantizer" for name in set(network.layers()) - set(trained_layers(network)))
    return {name: site for name, site in network.sites().items() if not name.startswith(fixed)}


class IntegerBase(nn.Module):
    """A layer's weight as its present codes, which stay, dequantized with its scales, which are learned."""

    def __init__(self, layer: QuantizedLayer):
        super().__init__()
        self._parts = [(quantizer, quantizer.codes(weight)) for quantizer, weight in layer.weight_parts()]

    def forward(self, _original: Tensor) -> Tensor:
        values = [
            grid.dequantize(q.granularity.view(codes), q.scale, q.zero_point).view_as(codes) for q, codes in self._parts
        ]
        return values[0] if len(values) == 1 else torch.cat(values, dim=1)


def span_extremes(layer: QuantizedLayer) -> None:
    """Choose the weight scales anew, from the smallest to the largest weight of each channel."""
    for quantizer, weight in layer.weight_parts():
        scale, zero_point = grid.search(quantizer.granularity.rows(weight), quantizer.grid, "max")
        quantizer.scale.copy_(scale.view_as(quantizer.scale))
        quantizer.zero_point.copy_(zero_point.view_as(quantizer.zero_point))


def attach_adapter(layer: QuantizedLayer, settings: EfficientDMSettings, generator: torch.Generator) -> LowRank:
    """Make the layer's weight, as its quantizer sees it, the base plus an adapter; nothing changes at first."""
    if settings.base == "int":
        parametrize.register_parametrization(layer, "weight", IntegerBase(layer))
        layer.round_to_nearest()
    adapter = LowRank(layer.weight.detach(), settings.rank, generator)
    parametrize.register_parametrization(layer, "weight", adapter)
    return adapter


def merge_adapters(layers: Iterable[QuantizedLayer]) -> None:
    """Leave each layer with a plain weight whose codes are clip(C + round(B·A / s)), and no adapter."""
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        layer.fold()


def parameter_groups(
    layers: dict[str, QuantizedLayer],
    adapters: dict[str, LowRank],
    sites: dict[str, ActivationQuantizer],
    settings: EfficientDMSettings,
) -> list[dict[str, Any]]:
    """All that is trained, with its learning rate, as an optimizer takes it; "floor" marks what must stay positive."""
    weight_scales = {name: [quantizer.scale for quantizer, _ in layer.weight_parts()] for name, layer in layers.items()}
    groups: list[dict[str, Any]] = [
        {
            "params": list(adapters[name].parameters()),
            "lr": torch.cat([scale.flatten() for scale in scales]).mean().item() / settings.adapter_lr_divisor,
            "floor": False,
        }
        for name, scales in weight_scales.items()
    ]
    zero_points = [site.zero_point for site in sites.values() if site.grid.kind == "asymmetric"]
    return [
        *groups,
        {
            "params": [scale for scales in weight_scales.values() for scale in scales],
            "lr": settings.weight_scale_lr,
            "floor": True,
        },
        {"params": [site.scale for site in sites.values()], "lr": settings.activation_lr, "floor": True},
        {"params": zero_points, "lr": settings.activation_lr, "floor": False},
    ]


def distil(
    network: QuantizedNetwork,
    teacher: QuantizedNetwork,
    calibration: Calibration,
    groups: list[dict[str, Any]],
    settings: EfficientDMSettings,
    seed: int,
    progress: Progress = NOT_KEPT,
) -> tuple[list[float], int]:
    """Train ``groups`` along trajectories of the teacher: at each of their states, one step on Σ (ε̂ - ε)². Those that
    ``progress`` has already are taken from it.

    Returns the mean loss of a sample on each trajectory, and how often a scale had to be kept from turning negative.
    """
    trained = [parameter for group in groups for parameter in group["params"]]
    rates = [group["lr"] for group in groups]
    optimizer = optimizers.adamw(groups, settings.weight_decay)
    scales = [scale for group in groups if group["floor"] for scale in group["params"]]
    sampler, device = calibration.sampler, calibration.x.device
    calls = sampler.calls()
    total = settings.trajectories * len(calls)
    losses: list[float] = []
    floored = torch.zeros((), dtype=torch.long, device=device)

    training, done = Training(trained, [optimizer]), 0
    if (kept := progress.get("distil")) is not None:
        training.resume(kept["training"])
        losses, floored, done = kept["losses"], kept["floored"].to(device), kept["done"]

    for parameter in trained:
        parameter.requires_grad_(True)
    teach, learn = Outputs(teacher, replayed=True), Outputs(network)
    call, guidance = calls[0], calibration.guidance([0])

    @partial(Limited, network, setting=SETTING)
    def loss_of(x: Tensor, target: Tensor, timesteps: Tensor, *context: Tensor) -> Tensor:
        told = None if guidance is None else replace(guidance, context=context[0])
        output = learn(x, timesteps, told)
        return (call.parametrization.noise(output, x) - target).square().sum()

    def step(*told: Tensor) -> tuple[Tensor]:
        loss = loss_of(*told)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        floored.add_((torch.cat([scale.flatten() for scale in scales]) < grid.MIN_SCALE).sum())
        keep_positive(scales)
        return (loss.detach(),)

    replayed = Replayed(step, setting=SETTING)
    try:
        left, count = range(done, settings.trajectories), settings.trajectories
        bar = tqdm(left, "efficientdm", count, initial=done, unit="trajectory", mininterval=5)
        for trajectory in bar:
            samples = range(trajectory * settings.batch_size, (trajectory + 1) * settings.batch_size)
            noise = SampleNoise("efficientdm", seed, samples, calibration.x.shape[2:])
            guidance = calibration.guidance(samples)
            context = [] if guidance is None else [guidance.context]
            predict = predictor(teach, guidance)
            walk = sampler.walk(noise, device)
            found = []
            for number, call in enumerate(calls, trajectory * len(calls)):
                with torch.no_grad():
                    target = predict(walk.x, call)
                optimizers.set_rates(optimizer, [rate * (1 - number / total) for rate in rates])
                network.set_step(call.step)
                timesteps = torch.full((len(walk.x),), call.timestep, device=device)
                variant = None if call.parametrization.kind == "epsilon" else call
                found += replayed(walk.x, target, timesteps, *context, variant=variant)
                walk.step(call, target)  # the trajectory stays the teacher's
            found = finite(torch.stack(found), f"losses of trajectory {trajectory}")  # waits for the device
            losses += (found / settings.batch_size).tolist()
            state = {"training": training.state(), "losses": losses, "floored": floored, "done": trajectory + 1}
            progress.put("distil", state)
            bar.set_postfix(loss=f"{losses[-1]:.3g}")
    finally:
        for parameter in trained:
            parameter.requires_grad_(False).grad = None
    history = torch.tensor(losses).view(settings.trajectories, -1).mean(1).tolist()
    log.info("loss on the first trajectory %.4g, on the last %.4g", history[0], history[-1])
    return history, int(floored)


@torch.no_grad()
def noise_error(network: QuantizedNetwork, teacher: QuantizedNetwork, calibration: Calibration) -> float:
    """Σ (ε̂ - ε)² of a sample, averaged over the calibration samples."""
    data = calibration.samples(16)
    total = 0.0
    for members in sets_of(network, data):
        total += (predict(network, data, members) - predict(teacher, data, members)).square().sum().item()
    return total / len(data)
