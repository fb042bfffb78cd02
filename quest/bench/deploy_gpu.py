"""`quest.bench.deploy` on a GPU: U-Nets of the papers at their real size, random weights.

Compiling a network takes minutes, timing it a second. So each way to compute a step has a process of its own: all of
them get ready side by side, and are then timed one after another, while the others wait. Eight of LDM-4 on 16 cores,
beside tests: bf16 was ready after 92 to 111 s, W4A4 after 193 and 201, W8A8 not yet after 210.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quest.bench import measuring, networks, others
from quest.bench.deploy import TIMESTEP, Row, on_grids
from quest.deploy import kernels
from quest.deploy.packed.assembly import packed

_REPEATS = 20
_PROFILED = 5  # steps
_KERNELS = 24
_COMPILERS = "3"  # threads of each process that compiles


class Ready(NamedTuple):
    """A step that can be timed. measure: seconds of one step, the median of repeats, and what to say of it. notes: what
    to say of the network."""

    measure: Callable[[], tuple[float, tuple[str, ...]]]
    memory_mib: float
    weights_mib: float
    notes: tuple[str, ...] = ()


class Case(NamedTuple):
    """way: a key of `WAYS`. profiled: whether to say which kernels take a step's time."""

    network: str
    way: str
    batch: int
    device: torch.device
    profiled: bool = False


def rows(
    name: str,
    batches: Sequence[int],
    minutes: float,
    device: torch.device,
    ways: Sequence[str] = (),
    profiled: bool = False,
) -> Iterator[Row | str]:
    """Rows of a network of `networks.NETWORKS`, those that matter most first; what was not ready in time is named.

    ways: some of `WAYS`, all of them by default.
    """
    ordered = sorted(batches, reverse=True)
    cases = [Case(name, way, batch, device, profiled) for way in ways or WAYS for batch in ordered]
    said: set[str] = set()
    for case, found in zip(cases, side_by_side(cases, prepare, minutes), strict=True):
        if isinstance(found, str):
            yield f"{case.way}, batch {case.batch}: {found}"
            continue
        row, notes = found
        yield Row(case.way, case.batch, *row)
        yield from (note for note in notes if note not in said)
        said.update(notes)


def side_by_side(
    cases: Sequence[Any], ready: Callable[[Any], Ready], minutes: float
) -> Iterator[tuple[tuple[float, float, float], tuple[str, ...]] | str]:
    """For each case, in their order: seconds, memory and size of a step, and notes; or why there are none.

    ready: of this module or another, so that a process can import it. A case that is not ready when the time is over is
    given up.
    """
    end = time.monotonic() + 60 * minutes
    context = multiprocessing.get_context("spawn")
    started = []
    for case in cases:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, ready, case), daemon=True)
        process.start()
        theirs.close()
        started.append((process, ours))
    heard = [_hear(connection, end - time.monotonic()) for _, connection in started]  # nothing is timed before
    for (process, connection), found in zip(started, heard, strict=True):
        if isinstance(found, str):
            yield found
        else:
            connection.send(None)
            measured = _hear(connection, 120.0)
            yield measured if isinstance(measured, str) else ((measured[0], *found[:2]), found[2] + measured[1])
        process.kill()
        process.join()


def _work(connection: Connection, ready: Callable[[Any], Ready], case: Any) -> None:
    try:
        found = ready(case)
        connection.send((found.memory_mib, found.weights_mib, found.notes))
        connection.recv()
        connection.send(found.measure())
    except Exception as error:  # whatever a compiler or a capture raises: the other rows are still wanted
        connection.send(f"failed, {type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _hear(connection: Connection, seconds: float) -> Any:
    """What a process says next."""
    if not connection.poll(max(seconds, 0)):
        return "not measured, the time was over"
    try:
        return connection.recv()
    except EOFError:
        return "failed, its process ended"


def prepare(case: Case) -> Ready:
    """Make a case's network, and its step a CUDA graph where it is compiled."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = _COMPILERS
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    with torch.no_grad():
        network, compiled, notes = WAYS[case.way](case.network, case.device)
        given = _inputs(network, case)
        call: Callable[[], Any] = lambda: network(*given)  # noqa: E731
        if compiled:
            call = _graph(network, given, case.device)
        measuring.reset_peak(case.device)
        call()
        measuring.wait(case.device)
    return Ready(lambda: _measured(call, case), measuring.peak_mib(case.device), others.mib(network), notes)


@torch.no_grad()
def _measured(call: Callable[[], Any], case: Case) -> tuple[float, tuple[str, ...]]:
    call()
    seconds = statistics.median(measuring.seconds(call, case.device) for _ in range(_REPEATS))
    return seconds, tuple(_profile(call, case)) if case.profiled else ()


def _profile(call: Callable[[], Any], case: Case) -> Iterator[str]:
    """Which kernels take the time of a step, the longest first."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(_PROFILED):
            call()
        measuring.wait(case.device)
    found = [event for event in profiler.key_averages() if event.self_device_time_total > 0]
    whole = sum(event.self_device_time_total for event in found) / 1e3 / _PROFILED
    count = sum(event.count for event in found) // _PROFILED
    yield f"  {case.way}, batch {case.batch}: {whole:.2f} ms in {count} kernels"
    for event in sorted(found, key=lambda event: -event.self_device_time_total)[:_KERNELS]:
        spent = event.self_device_time_total / 1e3 / _PROFILED
        yield f"  {spent:8.3f} ms, {event.count // _PROFILED:4d} times: {event.key[:100]}"


def _graph(network: nn.Module, given: tuple[Tensor, ...], device: torch.device) -> Callable[[], Any]:
    """Compiled, and replayed as one CUDA graph, the timestep a tensor on the device."""
    compiled: Any = torch.compile(network)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            compiled(*given)
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        compiled(*given)
    return graph.replay


def _inputs(network: nn.Module, case: Case) -> tuple[Tensor, Tensor]:
    dtype = next(p.dtype for p in network.parameters() if p.is_floating_point())
    x = torch.randn(case.batch, *networks.shape(case.network), device=case.device, dtype=dtype)
    timesteps = torch.full((case.batch,), TIMESTEP, device=case.device)
    return x.contiguous(memory_format=torch.channels_last), timesteps


Made = tuple[nn.Module, bool, tuple[str, ...]]  # a network, whether it is to be compiled, and what to say of it


def _full(name: str, device: torch.device) -> Made:
    return networks.make(name, device), False, ()


def _half(name: str, device: torch.device) -> Made:
    network: Any = networks.make(name, device).to(torch.bfloat16)
    return network.to(memory_format=torch.channels_last), False, ()


def _compiled(name: str, device: torch.device) -> Made:
    return _half(name, device)[0], True, ()


def _simulated(name: str, bits: str, device: torch.device) -> Made:
    network = networks.make(name, device)
    x = torch.randn(1, *networks.shape(name), device=device)
    quantized = on_grids(network, bits, (x, torch.zeros(1, dtype=torch.long, device=device)), x)
    for layer in quantized.layers().values():
        layer.freeze()
    return quantized, False, ()


def _integers(name: str, bits: str, device: torch.device) -> Made:
    """A packed network that multiplies integers, what is not packed in bf16."""
    simulated: Any = _simulated(name, bits, device)[0]
    network, _ = packed(simulated, [TIMESTEP])
    if name in networks.CONTEXTS:
        network = networks.conditioned(network, *networks.CONTEXTS[name])
    for parameter in network.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.bfloat16)
    return network, True, (f"{bits}: {kernels.summary(kernels.use_kernels(network))}",)


WAYS: dict[str, Callable[[str, torch.device], Made]] = {
    "bf16, compiled, graph": _compiled,
    "w8a8 integers, bf16, compiled, graph": lambda name, device: _integers(name, "w8a8", device),
    "w4a4 integers, bf16, compiled, graph": lambda name, device: _integers(name, "w4a4", device),
    "bf16, eager": _half,
    "float32 (TF32), eager": _full,
    "w4a4 simulated, float32": lambda name, device: _simulated(name, "w4a4", device),
}
"""The ways to compute a step, by what they are called, those that matter most first."""
