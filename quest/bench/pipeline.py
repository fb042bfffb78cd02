"""All that quantizing one of the papers' U-Nets takes, as one table, beside the published code's times.

Steps are timed, and hours are steps times milliseconds, as those of the published code are; weights and inputs are
random. Of sampling, the call of a step.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from quest.bench import measuring, networks, training, weights
from quest.bench.training import FORWARD_BATCH, PUBLISHED, STEPS, Published, Step, Timed
from quest.config.learning import ReconstructionSettings
from quest.config.methods.efficientdm import EfficientDMSettings
from quest.config.methods.q_diffusion import QDiffusionSettings
from quest.config.methods.quest import QuestSettings
from quest.config.sampling import SamplerSettings
from quest.diffusion.denoiser import Sampler
from quest.learning import finetuning
from quest.methods import efficientdm
from quest.quantization.network import QuantizedNetwork
from quest.report import text

_SEARCHED = 64  # samples that the activation scales of one sampling step are searched on
_DISTILLED = EfficientDMSettings(batch_size=4, trajectories=1)
_DISTIL_STEPS = 16_000
_PER_HOUR = {"h": 1, "s": 3_600, "ms": 3_600_000}


class Row(NamedTuple):
    """unit: h, s or ms, of ours and of published. None: nobody published it, or memory was not looked at."""

    work: str
    unit: str
    ours: float
    published: float | None
    peak_gib: float | None = None

    def hours(self) -> tuple[float, float]:
        """Ours and published."""
        return self.ours / _PER_HOUR[self.unit], (self.published or 0.0) / _PER_HOUR[self.unit]


def run(name: str, iterations: int, batch: int, device: torch.device | str, tf32: bool = False) -> str:
    """The table of a network of `networks.NETWORKS`: ``iterations`` steps of each kind are timed, at batches of at most
    ``batch``. tf32: whether a GPU rounds the operands of convolutions to TF32, as the published code does."""
    torch.backends.cudnn.allow_tf32 = tf32
    model = networks.make(name, device)
    seconds, _ = weights.search(weights.weights_of(model), 4, device)
    weight_scales = Row("weight scales, 80 ranges of each", "s", seconds, weights.PUBLISHED_SECONDS[name], _gib(device))
    found = training.timed(name, model, iterations, batch, device)
    activation_scales = _activation_scales(found.network, batch, device, PUBLISHED[name])
    rows = [
        *learning(found, weight_scales, activation_scales, PUBLISHED[name]),
        _sampling(found, iterations, batch, device, PUBLISHED[name]),
        _efficientdm(found.network, iterations, batch, device, PUBLISHED[name]),
    ]
    convolutions = "TF32" if tf32 else "float32"
    heading = f"{measuring.machine(device)}; on a GPU convolutions in {convolutions}, products in float32"
    title = f"{name}, {found.parameters / 1e6:.2f} M parameters, W4A4; published: the released code on one H200"
    return "\n\n".join([heading, title, table(rows)])


def learning(found: Timed, weight_scales: Row, activation_scales: Row, published: Published) -> Iterator[Row]:
    """From full precision to the finetuned network, with sums."""
    forward, tla, cma = (_step(found.steps, name) for name in ("full precision", "tla", "cma"))
    rounding = sum(block.units * block.rounding_ms for block in found.blocks)
    scales = sum(block.units * block.scales_ms for block in found.blocks)
    settings = QuestSettings()
    taught = STEPS * (settings.tla_samples + settings.cma_samples)
    each_ms = forward.ms / int(forward.name.rpartition(" ")[2])
    yield weight_scales
    learned = _of_steps("learned rounding", ReconstructionSettings().iterations, rounding, published.rounding_hours)
    yield learned
    yield _of_steps("learned activation scales", QDiffusionSettings().iterations, scales, published.scale_hours)
    quest = [
        activation_scales,
        Row(f"teacher's outputs, {taught:,} samples", "h", taught * each_ms / 3.6e6, published.teacher_hours),
        _of_steps(tla.name, published.tla_steps, tla.ms, published.tla_ms * published.tla_steps / 3.6e6, tla.peak_gib),
        _of_steps(cma.name, published.cma_steps, cma.ms, published.cma_ms * published.cma_steps / 3.6e6, cma.peak_gib),
    ]
    yield from quest
    yield _sum("QuEST from learned rounding", quest)
    yield _sum("QuEST, with learned rounding", [weight_scales, learned, *quest])
    yield Row(forward.name, "ms", forward.ms, forward.published_ms, forward.peak_gib)


def _step(steps: Sequence[Step], name: str) -> Step:
    return next(step for step in steps if step.name.startswith(name))


def _of_steps(work: str, steps: int, ms: float, published: float | None, peak_gib: float | None = None) -> Row:
    return Row(f"{work} × {steps:,}", "h", steps * ms / 3.6e6, published, peak_gib)


def _sum(work: str, rows: Sequence[Row]) -> Row:
    return Row(work, "h", *map(sum, zip(*(row.hours() for row in rows), strict=True)))


def _activation_scales(network: QuantizedNetwork, batch: int, device: torch.device | str, published: Published) -> Row:
    """Of one sampling step, as often as there are steps."""
    data = training.noise(min(_SEARCHED, batch), device)
    measuring.reset_peak(device)
    seconds = STEPS * measuring.seconds(lambda: finetuning.calibrate_activations(network, data), device)
    work = f"activation scales, {STEPS} steps on {len(data)} samples"
    return Row(work, "s", seconds, published.activation_search_s, _gib(device))


@torch.inference_mode()
def _sampling(found: Timed, iterations: int, batch: int, device: torch.device | str, published: Published) -> Row:
    """A call of the fake-quantized network."""
    size = min(batch, FORWARD_BATCH)
    x, timesteps = torch.randn(size, *networks.SHAPE, device=device), torch.zeros(size, device=device)

    def forward(steps: int) -> None:
        for _ in range(steps):
            found.network(x, timesteps)

    with found.network.frozen():
        measuring.reset_peak(device)
        ms = 1e3 * measuring.step_seconds(forward, iterations, device)
    return Row(f"fake-quantized, forward of {size}", "ms", ms, published.quantized_forward_ms, _gib(device))


def _efficientdm(
    network: QuantizedNetwork, iterations: int, batch: int, device: torch.device | str, published: Published
) -> Row:
    """Steps on the states of the teacher's trajectories, the teacher's own predictions included."""
    own = _DISTILLED.model_copy(update={"batch_size": min(batch, _DISTILLED.batch_size)})
    data = training.noise(own.batch_size, device)
    student = copy.deepcopy(network)
    layers, sites = efficientdm.trained_layers(student), efficientdm.trained_sites(student)
    generator = torch.Generator().manual_seed(0)
    adapters = {name: efficientdm.attach_adapter(layer, own, generator) for name, layer in layers.items()}
    groups = efficientdm.parameter_groups(layers, adapters, sites, own)

    def learn(steps: int) -> None:
        schedule = SamplerSettings(steps=steps, timesteps=tuple(range(900, 900 - steps, -1)))
        few = replace(data, sampler=Sampler(DDIMScheduler(beta_schedule="scaled_linear"), schedule))
        efficientdm.distil(student, network, few, copy.copy(groups), own, 0)

    measuring.reset_peak(device)
    with network.quantizing(weights=False, activations=False):
        ms = 1e3 * measuring.step_seconds(learn, iterations, device)
    theirs = None if published.efficientdm_ms is None else published.efficientdm_ms * _DISTIL_STEPS / 3.6e6
    return _of_steps(f"EfficientDM step, batch {own.batch_size}", _DISTIL_STEPS, ms, theirs, _gib(device))


def _gib(device: torch.device | str) -> float:
    return measuring.peak_mib(device) / 2**10


def table(rows: Sequence[Row]) -> str:
    """A row a work: ours, published, their ratio, and our peak memory."""
    lines = [("work", "unit", "ours", "published", "of published", "peak GiB")]
    for row in rows:
        none = row.published is None
        lines.append(
            (
                row.work,
                row.unit,
                f"{row.ours:,.3f}" if row.unit == "h" else f"{row.ours:,.1f}",
                "–" if none else f"{row.published:,.1f}",
                "–" if none else f"{row.ours / row.published:.3f}",  # type: ignore[operator]  # it is not None
                "–" if row.peak_gib is None else f"{row.peak_gib:.1f}",
            )
        )
    return text.table(lines)
