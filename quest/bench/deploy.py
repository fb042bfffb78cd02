"""What a step of a network costs in full precision, simulated, and with its integers multiplied: time, memory, size.

On a CPU; `deploy_gpu` is the same on a GPU. All of a run is measured in one process, medians of repeats that take
turns, so that its numbers can be compared with each other.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from quest import architectures
from quest.architectures import Inputs
from quest.bench import measuring, networks, others
from quest.bench.others import Way
from quest.config.quantizer import QuantizerSettings
from quest.config.values import Bits
from quest.deploy import kernels
from quest.deploy.packed.assembly import packed
from quest.diffusion.denoiser import Denoiser
from quest.quantization.network import QuantizedNetwork
from quest.quantization.quantizers import calibrating
from quest.quantization.recipe import Recipe

_REPEATS = 10
TIMESTEP = 500
_SLOW = 10


class Row(NamedTuple):
    """One measurement. seconds: of one call of the network."""

    what: str
    batch: int
    seconds: float
    memory_mib: float
    weights_mib: float

    def hours(self, steps: int) -> float:
        """Of a cell of `CELL` images in so many steps, one prediction of each image a step."""
        return self.seconds / self.batch * CELL * steps / 3600

    def line(self, steps: int) -> str:
        """As a line under `header`."""
        return (
            f"| {self.what} | {self.batch} | {self.seconds * 1e3:.2f} | {self.batch / self.seconds:.1f} "
            f"| {self.hours(steps):,.1f} | {self.memory_mib:,.0f} | {self.weights_mib:,.1f} |"
        )


CELL = 50_000
"""Images of a cell of the papers' tables."""


def header(steps: int) -> str:
    """Of the table of rows."""
    columns = (
        *("what", "batch", "ms a step", "samples a second, one step", f"hours for {CELL:,} images of {steps} steps"),
        *("peak MiB", "weights MiB"),
    )
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def on_cpu(loaded: Denoiser, bits: str, batch: int, repeats: int = _REPEATS, bf16: bool = True) -> Iterator[Row | str]:
    """Rows of a denoiser on the CPU, beside torchao and OpenVINO where they are installed; repeats of all of them take
    turns. Of each, how far its output is from the simulated network's. bf16: whether with it, which takes minutes for a
    call of a large network on a CPU without instructions for it."""
    example = loaded.example()
    x = torch.randn(batch, *loaded.shape, generator=torch.Generator().manual_seed(0))
    context = None if len(example) < 3 else torch.cat([example[2]] * batch)
    inputs = Inputs(x, torch.full((batch,), TIMESTEP), context)
    given = _arguments(loaded.network, inputs)
    simulated = on_grids(copy.deepcopy(loaded.network), bits, example, x, context)
    (floats, _), (fast, _) = packed(simulated, [TIMESTEP]), packed(simulated, [TIMESTEP])
    yield kernels.summary(kernels.use_kernels(fast, "auto"))
    half = copy.deepcopy(loaded.network).to(torch.bfloat16)
    halves = tuple(each.to(torch.bfloat16) if each.is_floating_point() else each for each in given)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), simulated.frozen():
        found: dict[str, Way | str] = {
            "float32": Way(lambda: loaded.network(*given).sample, others.mib(loaded.network)),
            "bf16": Way(lambda: half(*halves).sample, others.mib(half)),
            f"{bits}, simulated": Way(lambda: simulated(*given).sample, others.mib(loaded.network)),
            f"{bits} packed, floats": Way(lambda: floats(*given).sample, others.mib(floats)),
            f"{bits} packed, integers": Way(lambda: fast(*given).sample, others.mib(fast)),
            "torchao int8 dynamic, linear layers": others.torchao(loaded.network, given),
            "OpenVINO, float32": others.openvino(loaded.network, given, Path(folder)),
            f"OpenVINO, {bits}": others.openvino_integers(simulated, loaded, TIMESTEP, given, Path(folder)),
        }
        if not bf16:
            del found["bf16"]
        ways = {what: way for what, way in found.items() if isinstance(way, Way)}
        yield from (f"{what}: {why}" for what, why in found.items() if isinstance(why, str))
        taken: dict[str, list[float]] = {}
        expected = simulated(*given).sample
        for what, way in ways.items():
            begun = time.perf_counter()
            apart = float((way.call().float() - expected).norm() / expected.norm())
            taken[what] = [time.perf_counter() - begun]
            yield f"{what}: {apart:.2g} of the simulated network's output apart"
        slow = [what for what, first in taken.items() if first[0] > _SLOW * taken["float32"][0]]
        yield from (f"{what}: timed once, for it takes more than {_SLOW} times as long as float32" for what in slow)
        quick = [what for what in ways if what not in slow]
        for what in quick:
            taken[what].clear()  # the first call prepares what a library keeps
        for _ in range(repeats):
            for what in quick:
                taken[what].append(measuring.seconds(ways[what].call, "cpu"))
    for what, way in ways.items():
        yield Row(what, batch, statistics.median(taken[what]), measuring.peak_mib("cpu"), way.mib)


def random(name: str) -> Denoiser:
    """A network of `networks.NETWORKS` that is called without a context, on the CPU. Raises ValueError for another."""
    if name != "bedrooms":
        raise ValueError(f"--network {name}: on a CPU expected bedrooms, or the --model of a file")
    return Denoiser(networks.make(name, "cpu"), DDIMScheduler())


def _arguments(network: nn.Module, inputs: Inputs) -> tuple[Any, ...]:
    """What a network is called with."""
    return architectures.of(network).arguments(inputs)


def on_grids(
    network: nn.Module, bits: str, example: tuple[Any, ...], x: Tensor, context: Tensor | None = None
) -> QuantizedNetwork:
    """On grids that integers factor out of, calibrated on one call."""
    per_tensor: Any = {"4": "per_tensor", "8": "per_tensor"}
    settings = QuantizerSettings(weight_search="max", activation_search="max", activation_granularity=per_tensor)
    quantized = QuantizedNetwork(network, Recipe(Bits.parse(bits), settings, 1, 1), example)
    quantized.set_step(0)
    arguments = architectures.of(quantized).arguments(
        Inputs(x, torch.full((len(x),), TIMESTEP, device=x.device), context)
    )
    with torch.no_grad(), calibrating(quantized.network):
        quantized(*arguments)
    return quantized
