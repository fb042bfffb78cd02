"""Theorem 3.2 in numbers: the loss along a quantization perturbation, and the expansions that the paper makes of it.

z is what a place of the network computes in full precision, z + Δ what the quantized network computes there, and
L(z) = MSE(the rest of the network in full precision, true noise). With Δ = K ε and g, H gradient and Hessian at z + iε,
    L(z + Δ) - L(z) ≈ Σ_{i<K} ε'g_i + ½ ε'H_i ε                        (supplement, eq. 11)
which is exact for every K at the output, where L is quadratic, and elsewhere converges as K grows. Equation 10 as
printed has the whole displacement iε, i = 1 … K, in place of ε in the second sum; that grows like K/3 · ½ Δ'HΔ.
The theorem says that with few bits the first sum does not vanish, and that finetuning on quantized inputs lowers it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from quest import architectures
from quest.architectures import Inputs
from quest.config.values import Bits
from quest.diffusion import denoiser as denoisers
from quest.diffusion.conditions import conditions
from quest.learning import reconstruction
from quest.noise import HELD_OUT, SampleNoise
from quest.quantization.network import QuantizedNetwork
from quest.report import drawing
from quest.studies import Row
from quest.studies.charts import curve, distinct, short, start_figure, where
from quest.studies.subject import Subject, recording

POINTS = 64  # parts of Δ, a power of two
OUTPUT = "output"
_PURPOSE = "expansion"


class Segment(NamedTuple):
    """L from z to z + Δ. difference: L(z + Δ) - L(z). slopes, curvatures: g'Δ and Δ'HΔ at z + Δ·j/P, j = 0 … P.
    gradient: ‖g‖ at z + Δ. perturbation: ‖Δ‖ / ‖z‖."""

    difference: float
    slopes: list[float]
    curvatures: list[float]
    gradient: float
    perturbation: float

    def first(self, parts: int) -> float:
        """Σ ε'g_i over ``parts`` parts, i from 0. ``parts`` divides the segment's."""
        return sum(self.slopes[i] for i in self._starts(parts)) / parts

    def second(self, parts: int) -> float:
        """½ Σ ε'H_i ε, likewise."""
        return sum(self.curvatures[i] for i in self._starts(parts)) / parts**2 / 2

    def second_as_printed(self, parts: int) -> float:
        """½ Σ (iε)'H_i (iε), i from 1: equation 10 as printed."""
        stride = self._stride(parts)
        return sum((i / parts) ** 2 * self.curvatures[i * stride] for i in range(1, parts + 1)) / 2

    def _starts(self, parts: int) -> range:
        return range(0, len(self.slopes) - 1, self._stride(parts))

    def _stride(self, parts: int) -> int:
        stride, rest = divmod(len(self.slopes) - 1, parts)
        if rest:
            raise ValueError(f"{parts} parts do not divide the {len(self.slopes) - 1} of the segment")
        return stride


def along(loss: Callable[[Tensor], Tensor], z: Tensor, delta: Tensor, points: int) -> Segment:
    """The loss, a scalar function of a tensor like ``z``, on the way from z to z + delta."""
    slopes, curvatures, values, gradient = [], [], [], z
    with torch.enable_grad():
        for j in range(points + 1):
            x = (z + delta * (j / points)).requires_grad_()
            value = loss(x)
            (gradient,) = torch.autograd.grad(value, x, create_graph=True)
            slope = (gradient * delta).sum()
            (product,) = torch.autograd.grad(slope, x)  # HΔ
            slopes.append(slope.item())
            curvatures.append((product * delta).sum().item())
            values.append(value.item())
    size = (delta.norm() / z.norm()).item()
    return Segment(values[-1] - values[0], slopes, curvatures, gradient.norm().item(), size)


class Example(NamedTuple):
    """What the network is told at sampling step ``step``, and the noise that it should find."""

    step: int
    inputs: Inputs
    noise: Tensor


def measure(subject: Subject) -> list[Row]:
    """A row for each network, place in it and number of parts K. Losses are means over samples and elements."""
    full = subject.quantized(subject.bits, calibrated=False)
    given = example(subject)
    places = [middle(full), OUTPUT]
    full.set_step(given.step)
    rows = []
    with full.quantizing(weights=False, activations=False):
        # float64, so that differences of the loss at 8 bits are not lost in rounding.
        clean = _at(full.double(), places, _double(given.inputs))
        for name, bits, network in networks(subject):
            network.set_step(given.step)
            perturbed = _at(network, places, given.inputs)
            for place in places:
                loss = loss_of(full, place, _double(given.inputs), given.noise.double())
                segment = along(loss, clean[place], perturbed[place].double() - clean[place], POINTS)
                rows += [
                    {"weights": name, "bits": str(bits), "place": place, **_numbers(segment, parts)}
                    for parts in _powers(POINTS)
                ]
    return rows


def networks(subject: Subject) -> Iterator[tuple[str, Bits, QuantizedNetwork]]:
    """Rounded to nearest at several bit-widths; then, at the one that is studied, reconstructed and finetuned."""
    sets = subject.settings.methods.quest.sets
    for bits in dict.fromkeys((Bits(8, 8), Bits(6, 6), subject.bits)):
        yield "nearest", bits, subject.quantized(bits, sets)
    yield "reconstructed", subject.bits, subject.reconstructed(subject.bits, sets)
    yield "finetuned", subject.bits, subject.checkpoint().network


def example(subject: Subject) -> Example:
    """Samples of the full-precision model, noised again to the middle of the sampler's steps: data whose noise is
    known, without any real image."""
    model, settings, count = subject.model, subject.settings, subject.settings.analysis.samples
    sampler, seed = model.sampler(settings.sampler), subject.seed + HELD_OUT
    noise = SampleNoise(_PURPOSE, seed, range(count), model.shape)
    guidance = model.guidance(conditions(settings.condition, _PURPOSE, seed, range(count)), sampler.guidance_scale)
    with torch.no_grad():
        *_, sample = sampler.trajectory(denoisers.predictor(model.network, guidance), noise, subject.device)
    step = sampler.steps // 2
    fresh = noise.draw(subject.device)
    alpha = model.scheduler.alphas_cumprod[sampler.timesteps[step]].item()
    x = math.sqrt(alpha) * sample + math.sqrt(1 - alpha) * fresh
    timestep = torch.full((count,), int(sampler.timesteps[step]), device=subject.device)
    return Example(step, Inputs(x, timestep, None if guidance is None else guidance.context), fresh)


def middle(network: QuantizedNetwork) -> str:
    """The block that one call reaches halfway through."""
    names = [unit.name for unit in reconstruction.units(network)]
    return names[len(names) // 2]


def loss_of(full: QuantizedNetwork, place: str, inputs: Inputs, noise: Tensor) -> Callable[[Tensor], Tensor]:
    """The loss as a function of what ``place`` computes."""

    def loss(value: Tensor) -> Tensor:
        if place == OUTPUT:
            return mse_loss(value, noise)
        handle = full.network.get_submodule(place).register_forward_hook(lambda *_: value)
        try:
            return mse_loss(architectures.predict(full, inputs), noise)
        finally:
            handle.remove()

    return loss


@torch.no_grad()
def _at(network: QuantizedNetwork, places: list[str], inputs: Inputs) -> dict[str, Tensor]:
    """What the network computes at each place."""
    modules: dict[str, nn.Module] = {p: network.network.get_submodule(p) for p in places if p != OUTPUT}
    with recording(modules) as found:
        output = architectures.predict(network, inputs)
    return {**found, OUTPUT: output}


def _double(inputs: Inputs) -> Inputs:
    return Inputs(inputs.x.double(), inputs.timesteps, None if inputs.context is None else inputs.context.double())


def _powers(most: int) -> list[int]:
    return [2**power for power in range(most.bit_length())]


def _numbers(segment: Segment, parts: int) -> Row:
    first, second = segment.first(parts), segment.second(parts)
    return {
        "perturbation": segment.perturbation,
        "parts": parts,
        "difference": segment.difference,
        "first": first,
        "second": second,
        "expansion": first + second,
        "second_as_printed": (printed := segment.second_as_printed(parts)),
        "expansion_as_printed": first + printed,
        "gradient_norm": segment.gradient,
    }


def chart(dataset: str, rows: Sequence[Row]) -> Figure:
    """Both expansions at the output and inside over K; the first-order sum before and after finetuning."""
    title = f"{dataset}: loss change by quantization, and its expansions in K parts"
    figure, (at_output, inside, first) = start_figure(title, 14, 5, 1, 3)
    nearest = where(rows, weights="nearest")
    places, parts = distinct(rows, "place"), distinct(rows, "parts")
    bits = distinct(nearest, "bits")
    for index, width in enumerate(bits):
        mine = where(nearest, place=places[-1], bits=width)
        for key, line, what in (("expansion", "-", "eq. 11"), ("expansion_as_printed", ":", "eq. 10 as printed")):
            ratios = [row[key] / row["difference"] for row in mine]
            curve(at_output, index, parts, ratios, f"{width.upper()}, {what}", line)
        mine = where(nearest, place=places[0], bits=width)
        misses = [abs(row["expansion"] / row["difference"] - 1) for row in mine]
        curve(inside, index, parts, misses, width.upper(), "-")
    networks = dict.fromkeys((row["weights"], row["bits"]) for row in rows)
    studied = [network for network in networks if network[1] == bits[-1]]
    step = min(0.25, 0.9 / len(studied))
    for index, (version, width) in enumerate(studied):
        values = [where(rows, weights=version, bits=width, place=p, parts=parts[-1])[0]["first"] for p in places]
        spots = [place + (index - (len(studied) - 1) / 2) * step for place in range(len(places))]
        first.bar(spots, values, 0.92 * step, color=drawing.colour(index), label=f"{version} {width.upper()}")
    first.set_xticks(range(len(places)), [short(place) for place in places])
    for axes in (at_output, inside):
        axes.set_xscale("log", base=2)
        axes.set_xticks(parts, [str(p) for p in parts])
        axes.set_yscale("log")
    drawing.plain(at_output, "At the output, where the loss is quadratic", "parts K", "expansion / true loss change")
    drawing.plain(inside, f"Inside, after {short(places[0])} (eq. 11)", "parts K", "|expansion / true loss change − 1|")
    drawing.plain(first, f"First-order sum, K = {parts[-1]}", "place of the perturbation", "Σ ε'g (loss, no unit) ↓")
    for axes in (at_output, inside, first):
        axes.legend(frameon=False, fontsize=8)
    return figure
