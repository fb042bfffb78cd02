"""Activation scales of several sets of sampling steps, trained one set at a time.

Each set has an Adam of its own, so that what different sampling steps learn stays apart. Yet all of them are trained
through the same tensors, into which the set whose turn it is brings its scales, moments and count of steps: one step
that a GPU has recorded (`quest.graphs`) serves every set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from quest.learning import optimizers
from quest.quantization.quantizers import ActivationQuantizer, Trained


@contextmanager
def in_turns(sites: Sequence[ActivationQuantizer], lr: float) -> Iterator[Turns]:
    """Within, the scales of ``sites`` are trained, those of set 0 at first; afterwards all are back where they were."""
    with trained(sites) as used:
        turns = Turns(sites, used, lr)
        try:
            yield turns
        finally:
            turns.keep()


@contextmanager
def trained(sites: Sequence[ActivationQuantizer]) -> Iterator[list[Trained]]:
    """Within, calls at set 0 use a parameter of each site, which nothing changes by itself."""
    with ExitStack() as stack:
        yield [stack.enter_context(site.training_scale()) for site in sites]


class Turns:
    """What `in_turns` gives.

    scales: the parameters that are trained, those of the set whose turn it is. optimizer: of them. kept: of each set
    its scales, which are those of the sites, then Adam's moments and counts, as of the end of its last turn.
    """

    def __init__(self, sites: Sequence[ActivationQuantizer], used: Sequence[Trained], lr: float):
        self._used = used
        self.scales: list[nn.Parameter] = [each.scale for each in used]
        self.optimizer = optimizers.adam(self.scales, lr)
        states = [optimizers.begun(self.optimizer, scale) for scale in self.scales]
        learned = [state for of_scale in states for state in of_scale]
        self._live = [*(scale.data for scale in self.scales), *learned]
        self.kept: list[list[Tensor]] = [
            [*(site.scale.data[index] for site in sites), *map(torch.zeros_like, learned)]
            for index in range(len(sites[0].scale))
        ]
        self._index = 0

    def use(self, index: int) -> None:
        """It is the turn of set ``index``, at which the network has to be when it is called."""
        if index != self._index:
            self.keep()
            self._index = index
            self.bring()

    def keep(self) -> None:
        """End a turn, or save what it has learned so far."""
        torch._foreach_copy_(self.kept[self._index], self._live)  # type: ignore[reportPrivateImportUsage]  # one kernel

    def bring(self) -> None:
        """Begin a turn with what is kept, which may have been read from a file."""
        torch._foreach_copy_(self._live, self.kept[self._index])  # type: ignore[reportPrivateImportUsage]
        for each in self._used:
            each.index = self._index
