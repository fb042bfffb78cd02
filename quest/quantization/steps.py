"""Sampling steps and what a quantized network has for each: the one map from a sampling step to a set of scales."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

Index = TypeVar("Index", int, Tensor)


class Step(nn.Module):
    """The sampling step that a network is at, shared by all of its activation quantizers.

    sets: groups of consecutive sampling steps that share activation scales (T' of QuEST); steps: sampling steps S.
    The set of a step is ⌊step / (S / T')⌋, step 0 being the noisiest. widths: (S,) int64 buffer, which of the
    activation bit-widths of its network each step uses; the first unless a method chooses. position: (1,) int64 buffer,
    the set in use, for what reads it on the device; (N,) while each sample of a batch has its own.
    """

    widths: Tensor
    position: Tensor

    def __init__(self, sets: int, steps: int):
        super().__init__()
        if steps % sets:
            raise ValueError(f"{sets} sets of activation scales do not divide {steps} sampling steps")
        self.sets, self.steps = sets, steps
        self.register_buffer("widths", torch.zeros(steps, dtype=torch.long))
        self.register_buffer("position", torch.zeros(1, dtype=torch.long), persistent=False)
        self._current: tuple[int, int] | None = None  # step and width: read once a step, for it waits for the device

    def set_of(self, step: Index) -> Index:
        """The set of a sampling step, or of each of a tensor of them."""
        return step * self.sets // self.steps

    def steps_of(self, index: int) -> range:
        """The sampling steps of a set; inverse of `set_of`."""
        length = self.steps // self.sets
        return range(index * length, (index + 1) * length)

    def set(self, step: int) -> None:
        """Raises ValueError for a step outside 0 … steps-1."""
        if not 0 <= step < self.steps:
            raise ValueError(f"sampling step {step}; this network was calibrated for steps 0 to {self.steps - 1}")
        self._current = step, int(self.widths[step])
        self.position.fill_(self.set_of(step))

    @contextmanager
    def each(self, steps: Tensor) -> Iterator[None]:
        """Within, each sample of a batch is at a sampling step of its own, (N,) int64 on the device. A step must have
        been `set` before, whose bit-width serves for all."""
        before, self.position = self.position, self.set_of(steps)
        try:
            yield
        finally:
            self.position = before

    def as_now(self) -> Callable[[], AbstractContextManager[None]]:
        """Contexts within which the step is what it is at this call, of each sample its own, whatever was set since."""
        now = self._current, self.position.clone()  # which `set` changes in place

        @contextmanager
        def within() -> Iterator[None]:
            before = self._current, self.position
            self._current, self.position = now
            try:
                yield
            finally:
                self._current, self.position = before

        return within

    def use(self, widths: Sequence[int]) -> None:
        """Take the width of each step, noisiest first."""
        self.widths.copy_(torch.tensor(widths))
        if self._current is not None:
            self.set(self._current[0])

    @property
    def index(self) -> int:
        """Which set of scales is in use. Raises ValueError before any step was set."""
        return self.set_of(self._at()[0])

    @property
    def width(self) -> int:
        """Which bit-width is in use. Raises ValueError before any step was set."""
        return self._at()[1]

    def _at(self) -> tuple[int, int]:
        if self._current is None:
            raise ValueError("the quantized network was called before set_step(step); set the sampling step first")
        return self._current
