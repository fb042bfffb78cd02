"""Work that is done many times over: on a GPU recorded once as a CUDA graph, then replayed.

A step of a small network is hundreds of kernels of a few microseconds each, and launching one from Python takes longer
than it runs. A graph launches all of them at once; the kernels and so the numbers are the same.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quest.device import within_memory

log = logging.getLogger(__name__)
_enabled = True


class _Recorded(NamedTuple):
    inputs: tuple[Tensor, ...]
    graph: torch.cuda.CUDAGraph
    outputs: tuple[Tensor, ...]


class Replayed:
    """A function of tensors that is replayed on a GPU, and simply called on a CPU.

    function: of tensors, to a tuple of tensors. Nothing in it may make the host wait for the device, and all that it
    uses beside its arguments must stay where it is in memory. Each shape of the arguments, and each ``variant``, is a
    graph of its own: it is first called once as it is, which prepares what a library or an optimizer keeps, and
    recorded at its second call. A function that cannot be recorded is called as it is, after one warning.

    recordable: whether it may be recorded at all; one that fetches from host memory waits for the device. setting: what
    says how many samples the first argument has; a call that memory does not hold then names one that fits.
    """

    def __init__(
        self, function: Callable[..., tuple[Tensor, ...]], recordable: bool = True, setting: str | None = None
    ):
        self._function, self._recordable, self._setting = function, recordable, setting
        self._recorded: dict[Hashable, _Recorded | None] = {}  # None: called once
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    def __call__(self, *inputs: Tensor, variant: Hashable = None) -> tuple[Tensor, ...]:
        if self._setting is None:
            return self._call(inputs, variant)
        size = len(inputs[0])

        def call(samples: int) -> tuple[Tensor, ...]:
            if samples == size:
                return self._call(inputs, variant)
            self._recorded.clear()  # graphs hold memory
            return self._function(*(x[:samples] if x.ndim and len(x) == size else x for x in inputs))

        return within_memory(self._setting, size, call)

    def _call(self, inputs: tuple[Tensor, ...], variant: Hashable) -> tuple[Tensor, ...]:
        if not (_enabled and self._recordable) or inputs[0].device.type != "cuda":
            return self._function(*inputs)
        mode = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        key = (variant, mode, *((x.shape, x.dtype) for x in inputs))
        if key not in self._recorded:
            self._recorded[key] = None
            return self._aside(inputs)
        recorded = self._recorded[key] or self._record(inputs)
        if recorded is None:
            return self._function(*inputs)
        self._recorded[key] = recorded
        for own, x in zip(recorded.inputs, inputs, strict=True):
            own.copy_(x)
        recorded.graph.replay()
        return tuple(output.clone() for output in recorded.outputs)

    def _aside(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Call the function on the stream that it will be recorded on."""
        if self._stream is None:
            self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        stream, current = self._stream, torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            outputs = self._function(*inputs)
        current.wait_stream(stream)
        return outputs

    def _record(self, inputs: tuple[Tensor, ...]) -> _Recorded | None:
        """Record the function, without running it; None if it cannot be."""
        own = tuple(x.clone() for x in inputs)
        graph = torch.cuda.CUDAGraph()
        try:
            with _uncollected(), _recording(graph, self._pool, self._stream):
                outputs = self._function(*own)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._recordable = False
            first = str(error).partition("\n")[0]
            log.warning("this step cannot be recorded as a CUDA graph (%s); going on without, more slowly", first)
            return None
        return _Recorded(own, graph, outputs)


@contextmanager
def _recording(graph: torch.cuda.CUDAGraph, pool: Any, stream: torch.cuda.Stream | None) -> Iterator[None]:
    """As `torch.cuda.graph`, which gives all cached memory back first. Fetching it again for each of many graphs takes
    longer than recording them, so that is done only where memory is short."""
    torch.cuda.synchronize()
    if torch.cuda.mem_get_info()[0] < torch.cuda.memory_reserved():
        torch.cuda.empty_cache()
    with torch.cuda.stream(stream):
        graph.capture_begin(pool, capture_error_mode="thread_local")
        try:
            yield
        finally:
            graph.capture_end()


@contextmanager
def _uncollected() -> Iterator[None]:
    """Within, nothing is collected: an earlier graph thrown away frees device memory, which ends a recording."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@contextmanager
def plain() -> Iterator[None]:
    """Within, every function is called as it is: the reference that replays are held to."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before
