"""Time of an optimisation step on the paper's U-Nets beside the published code's: reconstruction of every block, and
finetuning of the whole network.

What is timed is what the stages run, `quest.learning` (`reconstruction`, `scales`, `finetuning`), at W4A4, on random
inputs. The published code has the flags that torch has by default: convolutions in TF32, products in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from quest import architectures
from quest.bench import measuring, networks
from quest.config.learning import ReconstructionSettings
from quest.config.methods.q_diffusion import QDiffusionSettings
from quest.config.methods.quest import QuestSettings
from quest.config.quantizer import QuantizerSettings
from quest.config.sampling import SamplerSettings
from quest.config.values import Bits
from quest.diffusion.denoiser import Sampler
from quest.learning import finetuning, reconstruction, turns
from quest.learning import scales as scale_learning
from quest.learning.cache import Cache
from quest.learning.calibration import Calibration
from quest.learning.finetuning import Stage
from quest.learning.reconstruction import Unit
from quest.methods import quest
from quest.quantization.network import QuantizedNetwork
from quest.quantization.recipe import Recipe
from quest.report import text

STEPS = 20
"""Sampling steps; one group of them, so one set of activation scales."""
FORWARD_BATCH = 50
_CALIBRATION = 8  # samples; scales need not be good


class Published(NamedTuple):
    """The released code on one NVIDIA H200, torch 2.11, random weights of the same architecture.

    rounding_hours, scale_hours: Q-Diffusion's two stages over all blocks, 20,000 and 5,000 steps a unit at batch 32,
    extrapolated from timed steps. rounding_units, scale_units: into how many units it cuts the network; for learned
    scales it takes an attention block of Bedrooms apart into four, where this library has one unit.
    forward_ms: one full-precision batch of 50. sample_ms: forward and backward through QuEST's W4A4 network, by batch,
    and peak_gib of it. tla_ms, cma_ms: a step of QuEST's stages at batches 2 and 4, of which it computes CMA's sample
    by sample; tla_steps, cma_steps: of a run; teacher_hours: of the outputs that CMA's steps are held to.
    activation_search_s: scales of all places for 20 sampling steps. quantized_forward_ms: one batch of 50 through the
    W4A4 network. efficientdm_ms: a step of EfficientDM at batch 4.
    """

    rounding_hours: float
    rounding_units: int
    scale_hours: float
    scale_units: int
    forward_ms: float
    sample_ms: dict[int, float]
    peak_gib: dict[int, float]
    tla_ms: float
    cma_ms: float
    tla_steps: int
    cma_steps: int
    teacher_hours: float
    activation_search_s: float
    quantized_forward_ms: float
    efficientdm_ms: float | None = None


PUBLISHED = {
    "imagenet": Published(
        rounding_hours=13.4,
        rounding_units=80,
        scale_hours=17.8 - 13.4,
        scale_units=80,
        forward_ms=134,
        sample_ms={1: 315, 4: 80, 32: 15.7},
        peak_gib={1: 12.4, 4: 17.3, 32: 63.3},
        tla_ms=847,
        cma_ms=3.3 * 3.6e6 / 6_400,
        tla_steps=24_000,
        cma_steps=6_400,
        teacher_hours=1.5,
        activation_search_s=864,
        quantized_forward_ms=255,
        efficientdm_ms=750,
    ),
    "bedrooms": Published(
        rounding_hours=10.1,
        rounding_units=48,
        scale_hours=13.2 - 10.1,
        scale_units=22 + 4 * 16 + 10,
        forward_ms=89,
        sample_ms={1: 224, 4: 57, 32: 18.0},
        peak_gib={1: 7.6, 4: 9.9, 32: 31.1},
        tla_ms=485,
        cma_ms=2.2 * 3.6e6 / 6_400,
        tla_steps=16_000,
        cma_steps=6_400,
        teacher_hours=0.4,
        activation_search_s=394,
        quantized_forward_ms=246,
    ),
}


class Step(NamedTuple):
    """A step of the whole network: what it is, its milliseconds, peak memory, and milliseconds and GiB as published."""

    name: str
    ms: float
    peak_gib: float
    published_ms: float
    published_gib: float | None = None


class Block(NamedTuple):
    """Units of one shape: one of them, how many there are, and milliseconds of a step of either stage on it."""

    unit: Unit
    units: int
    rounding_ms: float
    scales_ms: float


class Timed(NamedTuple):
    """network: on its grids. parameters: of it. steps, blocks: what was timed."""

    network: QuantizedNetwork
    parameters: int
    steps: list[Step]
    blocks: list[Block]


def run(names: Sequence[str], iterations: int, batch: int, device: torch.device | str, tf32: bool = False) -> str:
    """Text tables for each network: ``iterations`` steps of each kind are timed, at batches of at most ``batch``.

    tf32: whether a GPU rounds the operands of convolutions to TF32, as the published code does and no stage of ours.
    """
    torch.backends.cudnn.allow_tf32 = tf32
    convolutions = "TF32" if tf32 else "float32"
    parts = [f"{measuring.machine(device)}; on a GPU convolutions in {convolutions}, products in float32"]
    for name in names:
        found = timed(name, networks.make(name, device), iterations, batch, device)
        title = f"{name}, {found.parameters / 1e6:.2f} M parameters, W4A4"
        parts += [title, _step_table(found.steps), _block_table(found.blocks), _total_table(name, found.blocks)]
    return "\n\n".join(parts)


def timed(name: str, model: nn.Module, iterations: int, batch: int, device: torch.device | str) -> Timed:
    """Time ``iterations`` steps of each kind on a network of `networks.NETWORKS`, which is put on its grids."""
    forward = _forward(name, model, iterations, min(batch, FORWARD_BATCH), device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    # Steps take as long whatever the scales, so the fast search will do.
    recipe = Recipe(Bits(4, 4), QuantizerSettings(weight_search="max"), sets=1, steps=STEPS)
    example = architectures.of(model).example()[:2]  # a context it has by itself
    network = QuantizedNetwork(model, recipe, example)
    calibration = noise(max(batch, QuestSettings().cma_batch_size * (iterations + 1)), device)
    finetuning.calibrate_activations(network, replace(calibration, x=calibration.x[:, : min(batch, _CALIBRATION)]))
    steps = [forward, *_passes(name, network, calibration, iterations, batch, device)]
    steps += _stages(name, network, calibration, iterations, batch, device)
    blocks = _blocks(network, calibration, iterations, min(batch, ReconstructionSettings().batch_size), device)
    return Timed(network, parameters, steps, blocks)


def noise(samples: int, device: torch.device | str) -> Calibration:
    """Noise in the place of sampling states, all at the first step."""
    x = torch.randn(1, samples, *networks.SHAPE, generator=torch.Generator().manual_seed(0))
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False)
    return Calibration(x.to(device), [0], Sampler(scheduler, SamplerSettings(steps=STEPS, eta=0.0)))


def _forward(name: str, model: nn.Module, iterations: int, batch: int, device: torch.device | str) -> Step:
    x, timesteps = torch.randn(batch, *networks.SHAPE, device=device), torch.zeros(batch, device=device)

    @torch.inference_mode()
    def forward(steps: int) -> None:
        for _ in range(steps):
            model(x, timesteps)

    return _timed(f"full precision, forward of {batch}", forward, iterations, device, PUBLISHED[name].forward_ms)


def _passes(
    name: str,
    network: QuantizedNetwork,
    calibration: Calibration,
    iterations: int,
    batch: int,
    device: torch.device | str,
) -> list[Step]:
    """Forward and backward through the quantized network for all that CMA trains, by batch."""
    stage = quest.attention_alignment(network, QuestSettings())
    data = calibration.samples(batch)
    published = PUBLISHED[name]
    found = []
    with turns.trained(stage.sites) as scales, network.frozen(but=stage.layers):
        trained = [*stage.weights(), *(each.scale for each in scales)]
        for parameter in trained:
            parameter.requires_grad_(True)

        def passes(steps: int, samples: Tensor) -> None:
            for _ in range(steps):
                finetuning.predict(network, data, samples).square().mean().backward()
                for parameter in trained:
                    parameter.grad = None

        for size, ms in published.sample_ms.items():
            if size <= batch:
                function = partial(passes, samples=torch.arange(size))
                title = f"forward + backward of {size}, per sample"
                step = _timed(title, function, iterations, device, ms, published.peak_gib[size])
                found.append(step._replace(ms=step.ms / size))
        for parameter in trained:
            parameter.requires_grad_(False)
    return found


def _stages(
    name: str,
    network: QuantizedNetwork,
    calibration: Calibration,
    iterations: int,
    batch: int,
    device: torch.device | str,
) -> list[Step]:
    """A step of QuEST's two stages: forward, losses, backward and optimizers; the teacher's outputs are recorded."""
    settings = QuestSettings()
    published = PUBLISHED[name]
    found = []
    for stage, ms in (
        (quest.time_embedding_alignment(network, settings), published.tla_ms),
        (quest.attention_alignment(network, settings), published.cma_ms),
    ):
        size = min(batch, stage.batch_size)
        # One epoch over size · steps samples is as many steps.
        most = replace(stage, batch_size=size, epochs=1, samples=size * (iterations + 1))
        targets = most.record(network, calibration)

        def learn(steps: int, stage: Stage = most, targets: Cache = targets) -> None:
            finetuning.finetune(network, calibration, replace(stage, samples=stage.batch_size * steps), targets, 0)

        found.append(_timed(f"{stage.name} step, batch {size}", learn, iterations, device, ms))
    return found


def _timed(
    name: str,
    run: Callable[[int], Any],
    iterations: int,
    device: torch.device | str,
    published_ms: float,
    published_gib: float | None = None,
) -> Step:
    measuring.reset_peak(device)
    ms = 1e3 * measuring.step_seconds(run, iterations, device)
    return Step(name, ms, measuring.peak_mib(device) / 2**10, published_ms, published_gib)


def _blocks(
    network: QuantizedNetwork, calibration: Calibration, iterations: int, batch: int, device: torch.device | str
) -> list[Block]:
    """A step of learned rounding and one of learned activation scales, on one unit of each shape.

    Units of equal weights in equal places of their block have equal inputs too: channels tell the resolution.
    """
    data = calibration.samples(batch)
    same: dict[Any, list[Unit]] = {}
    for unit in reconstruction.units(network):
        layers = ((layer.role, layer.weight.shape) for layer in unit.layers.values())
        same.setdefault((type(unit.module), *layers), []).append(unit)
    rounding, scales = {}, {}
    adaround = ReconstructionSettings(batch_size=batch)
    with network.quantizing(weights=True, activations=False):
        for key, (unit, *_) in same.items():
            with network.frozen():
                cache = reconstruction.record(network, unit, data, adaround.cache_mib, weights=True)

            def round_weights(steps: int, unit: Unit = unit, cache: Cache = cache) -> None:
                settings = adaround.model_copy(update={"iterations": steps})
                reconstruction.learn_unit(unit, cache, settings, torch.Generator())

            rounding[key] = 1e3 * measuring.step_seconds(round_weights, iterations, device)
    lsq = QDiffusionSettings(batch_size=batch)
    with network.frozen():
        for key, (unit, *_) in same.items():
            cache = reconstruction.record(network, unit, data, lsq.cache_mib, weights=False)

            def learn_scales(steps: int, unit: Unit = unit, cache: Cache = cache) -> None:
                settings = lsq.model_copy(update={"iterations": steps})
                scale_learning.learn_unit(network, unit, cache, [torch.arange(batch)], settings, torch.Generator())

            scales[key] = 1e3 * measuring.step_seconds(learn_scales, iterations, device)
    return [Block(units[0], len(units), rounding[key], scales[key]) for key, units in same.items()]


def _step_table(steps: Sequence[Step]) -> str:
    rows = [("step", "ms", "published ms", "of published", "peak GiB", "published GiB")]
    rows += [
        (
            step.name,
            f"{step.ms:,.1f}",
            f"{step.published_ms:,.1f}",
            f"{step.ms / step.published_ms:.2f}×",
            f"{step.peak_gib:.1f}",
            "–" if step.published_gib is None else f"{step.published_gib:.1f}",
        )
        for step in steps
    ]
    return text.table(rows)


def _block_table(blocks: Sequence[Block]) -> str:
    rows = [("block, the first of its shape", "kind", "of this shape", "rounding ms", "scales ms")]
    rows += [
        (
            block.unit.name,
            next(iter(block.unit.layers.values())).role
            if len(block.unit.layers) == 1
            else type(block.unit.module).__name__,
            str(block.units),
            f"{block.rounding_ms:.2f}",
            f"{block.scales_ms:.2f}",
        )
        for block in blocks
    ]
    return text.table(rows)


def _total_table(name: str, blocks: Sequence[Block]) -> str:
    """The mean of a step over all units; hours are that times the units and the steps that each takes."""
    published = PUBLISHED[name]
    units = sum(block.units for block in blocks)
    rows = [
        ("reconstruction", "units", "steps", "ms a step", "hours", "published units", "published ms", "published hours")
    ]
    for title, steps, ms, (their_units, their_hours) in (
        (
            "learned rounding",
            ReconstructionSettings().iterations,
            sum(block.units * block.rounding_ms for block in blocks),
            (published.rounding_units, published.rounding_hours),
        ),
        (
            "learned activation scales",
            QDiffusionSettings().iterations,
            sum(block.units * block.scales_ms for block in blocks),
            (published.scale_units, published.scale_hours),
        ),
    ):
        rows.append(
            (
                title,
                str(units),
                f"{steps:,}",
                f"{ms / units:.2f}",
                f"{ms * steps / 3.6e6:.2f}",
                str(their_units),
                f"{their_hours * 3.6e6 / steps / their_units:.1f}",
                f"{their_hours:.1f}",
            )
        )
    return text.table(rows)
