"""Training through a whole network within a limit of memory: what blocks keep for the backward pass is computed again.

Autograd keeps what the layers of a forward pass are given until the backward pass has used it. A block that is computed
again (Chen et al. 2016, Training deep nets with sublinear memory cost) keeps its inputs alone, for the time of another
forward pass through it. The numbers are the same. Without a limit (`quest.device.memory_limit`) nothing is done here.

With M the bytes in use before, three times the trained weights (gradients and Adam's moments), K those that are kept,
B those of a block, and A the blocks that are computed again, a step takes at most about
    M + K(A) + max_{A} (B - what is kept of it anyway) + max B,
the last for gradients on their way through a block, of which no more are alive at once than it keeps.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from quest.device import MEMORY, OutOfMemory, held, memory_limit
from quest.quantization.network import QuantizedNetwork

log = logging.getLogger(__name__)
T = TypeVar("T")
OF_A_WEIGHT = 3
"""What training takes beside a weight, in weights: its gradient and Adam's two moments."""


class Limited(Generic[T]):
    """A forward pass through a network, with gradients, of which as much is computed again as the limit asks for.

    forward: of tensors with the samples of a batch first, to what the backward pass begins at. Nothing in it may be
    random. setting: what says how many samples there are. What blocks keep is measured at the first call with so many
    samples, which is never one that a graph records. Raises OutOfMemory, naming the least that would do and a batch
    that fits, where the limit is too small for computing everything again.
    """

    def __init__(self, network: QuantizedNetwork, forward: Callable[..., T], setting: str):
        self._network, self._forward, self._setting = network, forward, setting
        self._limit = memory_limit()
        self._standing: float | None = None  # bytes that a step takes beside what it keeps
        self._again: dict[int, Sequence[str]] = {}  # blocks, by samples

    def __call__(self, *inputs: Tensor) -> T:
        if self._limit == math.inf:
            return self._forward(*inputs)
        samples = len(inputs[0])
        if samples not in self._again:
            self._again[samples] = self._choose(inputs)
        with recomputed(self._network, self._again[samples]):
            return self._forward(*inputs)

    def _choose(self, inputs: tuple[Tensor, ...]) -> Sequence[str]:
        if self._standing is None:
            trained = (weight for weight in self._network.parameters() if weight.requires_grad)
            moments = OF_A_WEIGHT * sum(weight.numel() * weight.element_size() for weight in trained)
            self._standing = held(inputs[0].device) + moments
        samples, kept = len(inputs[0]), self._measured(inputs)
        again = kept.blocks_for(self._limit - self._standing)
        if again is None:
            raise OutOfMemory(self._refusal(inputs, kept.least()))
        log.info(
            "a step of %d samples: %.2f GiB are kept, %d of %d blocks are computed again",
            *(samples, kept.bytes(again) / 2**30, len(again), len(kept.inside)),
        )
        return again

    def _measured(self, inputs: tuple[Tensor, ...]) -> Kept:
        return measure(self._network, lambda: self._forward(*inputs))

    def _refusal(self, inputs: tuple[Tensor, ...], least: float) -> str:
        assert self._standing is not None
        samples = len(inputs[0])
        told = (
            f"{self._setting}: a batch of {samples} takes {_gib(self._standing + least)} GiB even where every block is "
            f"computed again, and the limit (--memory or {MEMORY}) is {self._limit / 2**30:.4g}"
        )
        one = self._measured(tuple(x[:1] if x.ndim and len(x) == samples else x for x in inputs)).least()
        left = self._limit - self._standing - one
        if left < 0:
            return f"{told}; a single sample takes {_gib(self._standing + one)}"
        each = (least - one) / max(1, samples - 1)
        fits = min(samples - 1, 1 + int(left / each)) if each else 1
        return f"{told}; give that much, or set {self._setting} to {fits}, which fits"


@dataclass(frozen=True)
class Kept:
    """What a forward pass keeps for its backward pass.

    size: bytes of each storage, by number. inside: the storages that each block keeps, by its name; outside: those that
    are kept between blocks; given: those of each block's inputs, which are kept where it is computed again. Storages
    that were there before, as parameters are, do not count.
    """

    size: dict[int, int]
    inside: dict[str, set[int]]
    given: dict[str, set[int]]
    outside: set[int]

    def bytes(self, again: Collection[str] = ()) -> int:
        """Bytes that are kept where the blocks ``again`` are computed again."""
        return self._sum(self._storages(again))

    def peak(self, again: Collection[str] = ()) -> int:
        """The most bytes at once: what is kept, what a block computes again, and the gradients within one."""
        kept = self._storages(again)
        computed = max((self._sum(self.inside[name] - kept) for name in again), default=0)
        return self._sum(kept) + computed + max((self._sum(inside) for inside in self.inside.values()), default=0)

    def blocks_for(self, room: float) -> Sequence[str] | None:
        """The fewest blocks to compute again, those that save most first, for a peak within ``room`` bytes; None where
        there is none."""
        return next((again for again in self._choices() if self.peak(again) <= room), None)

    def least(self) -> int:
        """The smallest peak that there is."""
        return min(map(self.peak, self._choices()))

    def _choices(self) -> Iterator[Sequence[str]]:
        whole = self.bytes()
        saved = {name: whole - self.bytes((name,)) for name in self.inside}
        order = sorted((name for name in saved if saved[name] > 0), key=lambda name: -saved[name])
        return (order[:count] for count in range(len(order) + 1))

    def _storages(self, again: Collection[str]) -> set[int]:
        parts = (self.given[name] if name in again else inside for name, inside in self.inside.items())
        return self.outside.union(*parts)

    def _sum(self, storages: set[int]) -> int:
        return sum(self.size[each] for each in storages)


def measure(network: QuantizedNetwork, forward: Callable[[], Any]) -> Kept:
    """What ``forward``, which calls the network, keeps. It runs once and nothing of it is kept, so that it takes no
    more memory than a call without gradients; on the meta device it takes none."""
    known = {_number(x) for module in network.modules() for x in _tensors(module)}
    alive: dict[int, StorageWeakRef] = {}  # a number stays a storage's own while there is a reference to it
    kept = Kept({}, {}, {}, set())
    within: list[str] = []

    def note(x: Tensor, where: set[int]) -> None:
        number = _number(x)
        if number in known:
            return
        if number not in alive:
            alive[number] = StorageWeakRef(x.untyped_storage())
            kept.size[number] = x.untyped_storage().nbytes()
        where.add(number)

    def pack(x: Tensor) -> None:
        note(x, kept.inside[within[-1]] if within else kept.outside)

    def enter(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            within.append(name)
            kept.inside.setdefault(name, set())
            given = kept.given.setdefault(name, set())
            for value in (*args, *named.values()):
                if isinstance(value, Tensor):
                    note(value, given)

        return hook

    def leave(*_: Any) -> None:
        within.pop()

    with ExitStack() as stack:
        for name, block in network.blocks().items():
            stack.callback(block.register_forward_pre_hook(enter(name), with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(leave).remove)
        stack.enter_context(torch.enable_grad())
        stack.enter_context(saved_tensors_hooks(pack, _never))
        forward()
    return kept


@contextmanager
def recomputed(network: QuantizedNetwork, names: Collection[str]) -> Iterator[None]:
    """Within, what these blocks (`QuantizedNetwork.blocks`) keep of forward passes is computed again by the backward
    pass, whenever that is."""
    every = network.blocks() if names else {}
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(_forgetting(network, every[name]))
        yield


@contextmanager
def _forgetting(network: QuantizedNetwork, block: nn.Module) -> Iterator[None]:
    """Within, ``block`` keeps its inputs alone."""
    forward, own = block.forward, vars(block)

    def run(*args: Any, **named: Any) -> Any:
        as_now = network.as_now()

        def same(*args: Any, **named: Any) -> Any:
            with as_now():  # the backward pass may come when the network is at another step
                return forward(*args, **named)

        return checkpoint(same, *args, use_reentrant=False, preserve_rng_state=False, **named)

    before = own.get("forward")
    own["forward"] = run
    try:
        yield
    finally:
        del own["forward"]
        if before is not None:
            own["forward"] = before


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """The tensors of a module itself: parameters, buffers, and a weight that was quantized once for all calls."""
    values = (*module.parameters(recurse=False), *module.buffers(recurse=False), *vars(module).values())
    return (value for value in values if isinstance(value, Tensor))


def _number(x: Tensor) -> int:
    return StorageWeakRef(x.untyped_storage()).cdata


def _never(_packed: None) -> Tensor:
    raise RuntimeError("a forward pass that was measured keeps nothing for a backward pass")


def _gib(size: float) -> str:
    """Rounded up, so that what is told is enough."""
    return f"{math.ceil(size / 2**30 * 100) / 100:.2f}"
