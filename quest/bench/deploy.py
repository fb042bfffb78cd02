"""What a step of a network costs in full precision, simulated, and with its integers multiplied: time, memory, size.

Weights are random, at a published U-Net's real size: speed does not depend on them. All of a run is measured in one
process, medians of repeats that take turns where they are short, so that its numbers can be compared with each other.
"""

from __future__ import annotations

import copy
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
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
from quest.deploy.packed.assembly import packed, packed_layers
from quest.diffusion.denoiser import Denoiser
from quest.quantization.network import QuantizedNetwork
from quest.quantization.quantizers import calibrating
from quest.quantization.recipe import Recipe

_REPEATS = 10
_TIMESTEP = 500
_SLOW = 10
_CONTEXT = (1, 512)  # of the class-conditional network: tokens and channels


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


def on_gpu(name: str, batches: Sequence[int], minutes: float, device: torch.device) -> Iterator[Row | str]:
    """Rows of a network of `networks.NETWORKS`, those that matter most first; what does not fit into the time is named.

    Compiled rows are replayed as CUDA graphs, the timestep a tensor on the device.
    """
    end = time.monotonic() + 60 * minutes
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    makers: dict[str, Callable[[], nn.Module]] = {
        "bf16, channels-last": lambda: _half(networks.make(name, device)),
        **{f"{bits} integers, bf16": lambda bits=bits: _integers(name, bits, device) for bits in ("w8a8", "w4a4")},
    }
    for what, make in makers.items():
        network = make()
        size = others.mib(network)
        if packed_layers(network):
            yield kernels.summary(kernels.use_kernels(network, "auto"))
        for batch in sorted(batches, reverse=True):
            if "bf16, channels" in what:
                yield _row(f"{what}, eager", network, batch, size, device)
            if time.monotonic() > end:
                yield f"{what}, compiled, batch {batch}: not measured, the time was over"
                continue
            begun = time.monotonic()
            try:
                yield _graphed(f"{what}, compiled, graph", network, batch, size, device)
            except Exception as error:  # whatever a compiler or a capture raises: the other rows are still wanted
                yield f"{what}, compiled, batch {batch}: failed, {type(error).__name__}: {str(error)[:500]}"
            yield f"batch {batch}: {time.monotonic() - begun:.0f} s with compiling"
        del network
        _forget()
    for what, make in {
        "float32 (TF32)": lambda: networks.make(name, device),
        "w4a4, simulated, float32": lambda: _simulated(name, "w4a4", device),
    }.items():
        network = make()
        for batch in sorted(batches, reverse=True):
            if time.monotonic() < end:
                yield _row(what, network, batch, others.mib(network), device)
            else:
                yield f"{what}, batch {batch}: not measured, the time was over"
        del network
        _forget()


def on_cpu(loaded: Denoiser, bits: str, batch: int, repeats: int = _REPEATS, bf16: bool = True) -> Iterator[Row | str]:
    """Rows of a denoiser on the CPU, beside torchao and OpenVINO where they are installed; repeats of all of them take
    turns. Of each, how far its output is from the simulated network's. bf16: whether with it, which takes minutes for a
    call of a large network on a CPU without instructions for it."""
    example = loaded.example()
    x = torch.randn(batch, *loaded.shape, generator=torch.Generator().manual_seed(0))
    context = None if len(example) < 3 else torch.cat([example[2]] * batch)
    inputs = Inputs(x, torch.full((batch,), _TIMESTEP), context)
    given = _arguments(loaded.network, inputs)
    simulated = _quantized(copy.deepcopy(loaded.network), bits, example, x, context)
    simulated.set_step(0)
    (floats, _), (fast, _) = packed(simulated, [_TIMESTEP]), packed(simulated, [_TIMESTEP])
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
            f"OpenVINO, {bits}": others.openvino_integers(simulated, loaded, _TIMESTEP, given, Path(folder)),
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


def _quantized(
    network: nn.Module, bits: str, example: tuple[Any, ...], x: Tensor, context: Tensor | None = None
) -> QuantizedNetwork:
    """On grids that integers factor out of, calibrated on one call."""
    per_tensor: Any = {"4": "per_tensor", "8": "per_tensor"}
    settings = QuantizerSettings(weight_search="max", activation_search="max", activation_granularity=per_tensor)
    quantized = QuantizedNetwork(network, Recipe(Bits.parse(bits), settings, 1, 1), example)
    quantized.set_step(0)
    arguments = architectures.of(quantized).arguments(
        Inputs(x, torch.full((len(x),), _TIMESTEP, device=x.device), context)
    )
    with torch.no_grad(), calibrating(quantized.network):
        quantized(*arguments)
    return quantized


def _simulated(name: str, bits: str, device: torch.device) -> Any:
    network = networks.make(name, device)
    x = torch.randn(1, *networks.SHAPE, device=device)
    quantized = _quantized(network, bits, (x, torch.zeros(1, dtype=torch.long, device=device)), x)
    for layer in quantized.layers().values():
        layer.freeze()
    return quantized


def _integers(name: str, bits: str, device: torch.device) -> nn.Module:
    """A packed network, what is not packed in bf16."""
    simulated = _simulated(name, bits, device)
    network, _ = packed(simulated, [_TIMESTEP])
    if name == "imagenet":
        network = networks.conditioned(network, _CONTEXT[1])
    for parameter in network.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.bfloat16)
    return network


def _half(network: nn.Module) -> nn.Module:
    return network.to(torch.bfloat16).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _inputs(network: nn.Module, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    dtype = next(p.dtype for p in network.parameters() if p.is_floating_point())
    x = torch.randn(batch, *networks.SHAPE, device=device, dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last), torch.full((batch,), _TIMESTEP, device=device)


@torch.no_grad()
def _row(what: str, network: nn.Module, batch: int, size: float, device: torch.device) -> Row:
    if isinstance(network, QuantizedNetwork):
        network.set_step(0)
    given = _inputs(network, batch, device)
    measuring.reset_peak(device)
    return Row(what, batch, _median(lambda: network(*given), device), measuring.peak_mib(device), size)


@torch.no_grad()
def _graphed(what: str, network: nn.Module, batch: int, size: float, device: torch.device) -> Row:
    """Compiled, and replayed as one CUDA graph."""
    given = _inputs(network, batch, device)
    torch._dynamo.reset()
    compiled: Any = torch.compile(network)
    measuring.reset_peak(device)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            compiled(*given)
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        compiled(*given)
    return Row(what, batch, _median(graph.replay, device), measuring.peak_mib(device), size)


def _median(call: Callable[[], Any], device: torch.device) -> float:
    call()
    return statistics.median(measuring.seconds(call, device) for _ in range(_REPEATS))


def _forget() -> None:
    gc.collect()
    torch._dynamo.reset()
    torch.cuda.empty_cache()
