"""Inputs of unit after unit, without running the network from its start for each.

A call of the network that is to end at a unit needs nothing of the units before it but their outputs, and of those only
the ones that reach a later unit otherwise than through units: the one right before, and where there are skip
connections those that wait for their end. They are kept by sample, in host memory; units that were passed give them
instead of being computed. Which are needed is found from derivatives: each output of one call is made a leaf of the
graph, and what a unit is called with depends on those leaves that have a gradient. So no architecture has to tell.
Samples that the budget has no room for run from the start, as all would without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from quest import architectures
from quest.architectures import Inputs
from quest.quantization.network import QuantizedNetwork

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class _Reached(Exception):
    """Ends a call of the network where it reaches a module, and carries the module's arguments."""

    def __init__(self, args: tuple[Any, ...], named: dict[str, Any]):
        super().__init__()
        self.args, self.named = args, named


def reach(network: QuantizedNetwork, inputs: Inputs, module: nn.Module) -> Arguments | None:
    """What one call of the network calls ``module`` with, where the call ends; None if it never does."""

    def stop(_module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        raise _Reached(args, named)

    handle = module.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        architectures.predict(network, inputs)
    except _Reached as found:
        return found.args, found.named
    finally:
        handle.remove()
    return None


class Needs:
    """Which outputs of ``entries``, modules in the order in which ``call`` reaches them, are needed until when.
    ``call`` is one of the network, with one sample.

    until: for each, the number of the last entry whose arguments depend on it otherwise than through other entries.
    bytes: the most that is needed at once, of one sample. A network that calls an entry twice needs everything
    computed: ``until`` is empty.
    """

    def __init__(self, call: Callable[[], Any], entries: Sequence[nn.Module]):
        self.until: list[int] = []
        self.bytes = 0
        sums: list[Tensor] = []
        leaves: list[list[Tensor]] = []
        sizes: list[int] = []

        def called(_module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            sums.append(torch.stack([x.sum() for x in _floats((args, named))]).sum())

        def gave(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
            cut = pytree.tree_map_only(
                Tensor, lambda x: x.detach().clone().requires_grad_(x.is_floating_point()), output
            )
            leaves.append(_floats(cut))
            sizes.append(sum(x.nbytes for x in pytree.tree_leaves(output) if isinstance(x, Tensor)))
            return pytree.tree_map_only(Tensor, torch.clone, cut)  # a leaf may not be changed in place

        handles = [each.register_forward_pre_hook(called, with_kwargs=True) for each in entries]
        handles += [each.register_forward_hook(gave) for each in entries]
        try:
            with torch.enable_grad():
                call()
        finally:
            for handle in handles:
                handle.remove()
        if len(sums) != len(entries):
            return
        self.until = list(range(len(entries)))
        for later, total in enumerate(sums):
            if total.requires_grad:
                flat = [(j, leaf) for j in range(later) for leaf in leaves[j]]
                found = torch.autograd.grad(total, [leaf for _, leaf in flat], retain_graph=True, allow_unused=True)
                for (earlier, _), gradient in zip(flat, found, strict=True):
                    if gradient is not None:
                        self.until[earlier] = later
        at_once = (sum(size for j, size in enumerate(sizes[:k]) if self.until[j] >= k) for k in range(len(entries)))
        self.bytes = max(at_once, default=0)


class Walk:
    """The way of one batch through the network, as far as it was followed, in one precision."""

    def __init__(self, network: QuantizedNetwork, entries: Sequence[nn.Module], until: Sequence[int]):
        self._network, self._entries, self._until = network, entries, until
        self._passed: list[Any] = []  # outputs by entry; on the meta device where they are needed no more

    def arguments(self, inputs: Inputs, index: int) -> Arguments | None:
        """What entry ``index`` is called with; those before it must stay as they are from now on. As `reach`."""
        found: list[Any] = [None] * index

        def keep(number: int):
            def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
                found[number] = self._kept(output, number, index)

            return hook

        with ExitStack() as stack:
            for number, output in enumerate(self._passed):
                found[number] = self._kept(output, number, index, copy=False)
                stack.enter_context(_giving(self._entries[number], output, inputs.x.device))
            for number in range(len(self._passed), index):
                handle = self._entries[number].register_forward_hook(keep(number))
                stack.callback(handle.remove)
            reached = reach(self._network, inputs, self._entries[index])
        self._passed = found
        return reached

    def _kept(self, output: Any, number: int, index: int, *, copy: bool = True) -> Any:
        where = "cpu" if self._until[number] >= index else "meta"
        return pytree.tree_map_only(Tensor, lambda x: x.detach().to(where, copy=copy), output)


def _floats(tree: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, Tensor) and x.is_floating_point()]


@contextmanager
def _giving(module: nn.Module, output: Any, device: torch.device) -> Iterator[None]:
    """Within, a module gives ``output`` whatever it is called with; for what is not needed, what shows if it is."""

    def given(x: Tensor) -> Tensor:
        if not x.is_meta:
            return x.to(device, copy=True)  # it may be changed in place
        return torch.full_like(x, torch.nan if x.is_floating_point() else 0, device=device)

    module.forward = lambda *_args, **_named: pytree.tree_map_only(Tensor, given, output)
    try:
        yield
    finally:
        del module.forward  # the class's own again
