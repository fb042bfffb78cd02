"""What is recorded once to be learned from, by sample: on the device as far as a budget allows, else in host memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

UNLIMITED = 2**62  # bytes


class Cache:
    """Inputs and target of many samples: of a unit, or of a stage of finetuning what its layers give and the noise.

    budget: bytes on the device; what does not fit is in host memory. samples: how many there will be.
    """

    def __init__(self, budget: int, samples: int):
        self.samples, self._budget = samples, budget
        self.device_bytes = self.host_bytes = 0
        self.device = torch.device("cpu")
        self._filled = 0
        self._tensors: list[Tensor] = []  # of all samples: the arguments that are tensors, then the target
        self._layout: tuple[list[Any], dict[str, Any], list[str | int]] | None = None

    @property
    def on_device(self) -> bool:
        """Whether nothing has to be fetched from host memory."""
        return not self.host_bytes

    def add(self, inputs: tuple[tuple[Any, ...], dict[str, Any]], output: Tensor) -> None:
        """The next samples: the arguments of the unit, of which tensors are kept by sample, and its output."""
        args, named = inputs
        places: list[str | int] = [i for i, value in enumerate(args) if isinstance(value, Tensor)]
        places += [key for key, value in named.items() if isinstance(value, Tensor)]
        plain_args = [None if isinstance(value, Tensor) else value for value in args]
        plain_named = {key: value for key, value in named.items() if not isinstance(value, Tensor)}
        self._layout = plain_args, plain_named, places
        tensors = [(args[p] if isinstance(p, int) else named[p]).detach() for p in places] + [output.detach()]
        if not self._tensors:
            self._allocate(tensors)
        end = self._filled + len(output)
        for whole, part in zip(self._tensors, tensors, strict=True):
            whole[self._filled : end] = part
        self._filled = end

    def refill(self) -> None:
        """What is added from now on takes the place of what is here, so that graphs find it where it was."""
        self._filled = 0

    def _allocate(self, first: list[Tensor]) -> None:
        self.device = first[-1].device
        size = sum(part[0].numel() * part.element_size() for part in first) * self.samples
        fits = size <= self._budget
        self.device_bytes, self.host_bytes = (size, 0) if fits else (0, size)
        where = self.device if fits else torch.device("cpu")
        self._tensors = [torch.empty(self.samples, *p.shape[1:], dtype=p.dtype, device=where) for p in first]

    def take(self, samples: Tensor) -> tuple[tuple[Any, ...], dict[str, Any], Tensor]:
        """Arguments and target of the given samples (indices), on the device."""
        assert self._layout is not None
        plain_args, plain_named, places = self._layout
        *values, target = (whole[samples.to(whole.device)].to(self.device) for whole in self._tensors)
        args, named = list(plain_args), dict(plain_named)
        for place, value in zip(places, values, strict=True):
            if isinstance(place, int):
                args[place] = value
            else:
                named[place] = value
        return tuple(args), named, target
