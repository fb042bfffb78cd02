"""Quantizer modules: a grid, a granularity and the state, all of it in ``state_dict`` from construction on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from quest.quantization import grid as grids
from quest.quantization.granularity import Granularity, Multiples, Offsets, of_zero_points
from quest.quantization.grid import Grid
from quest.quantization.rounding import Nearest, round_ste
from quest.quantization.steps import Step


class WeightQuantizer(nn.Module):
    """Weights on a fixed grid; the rounding is a part that can be exchanged.

    weight: (out, in, …), searched at once. Raises ValueError for weights that are not finite.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, weight: Tensor, grid: Grid, granularity: Granularity, search: grids.Search):
        super().__init__()
        self.grid, self.granularity = grid, granularity
        rows = granularity.rows(weight.detach())
        if weight.is_meta:  # a network without numbers, of which sizes are asked
            scale, zero_point = rows.new_ones(len(rows)), rows.new_zeros(len(rows))
        else:
            scale, zero_point = grids.search(rows, grid, search)
        shape = granularity.shape(weight.shape)
        self.register_buffer("scale", scale.view(shape))
        self.register_buffer("zero_point", zero_point.view(shape))
        self.rounding: nn.Module = Nearest()

    def codes(self, weight: Tensor) -> Tensor:
        """Integer codes (int32, the shape of weight) under the present rounding."""
        return self._code(self.granularity.view(weight)).detach().round().to(torch.int32).view_as(weight)

    def forward(self, weight: Tensor) -> Tensor:
        if isinstance(self.rounding, Nearest):  # the same number, and the same derivatives, in fewer passes
            whole = grids.fake_quantize(self.granularity.view(weight), self.scale, self.zero_point, self.grid)
            return whole.view_as(weight)
        code = self._code(self.granularity.view(weight))
        return ((code - self.zero_point) * self.scale).view_as(weight)

    def ratio(self, weight: Tensor) -> Tensor:
        """W / D, what a rounding sees; the layout of the granularity."""
        return self.granularity.view(weight) / self.scale

    def _code(self, weight: Tensor) -> Tensor:
        return torch.clamp(self.rounding(weight / self.scale) + self.zero_point, self.grid.low, self.grid.high)

    def extra_repr(self) -> str:
        return f"{self.grid.bits} bits, {self.grid.kind}, {self.granularity}"


class _Shared(NamedTuple):
    """Holds the step that quantizers share, so that it is no part of each: in ``state_dict`` it stands once."""

    step: Step


@dataclass
class Trained:
    """The scale that a quantizer uses while it is trained. index: the set of sampling steps that it is of."""

    scale: nn.Parameter
    index: int = 0

    def at(self, index: int) -> nn.Parameter:
        """The scale for calls at set ``index``. Raises ValueError where it is another one's."""
        if index != self.index:
            raise ValueError(
                f"the network is at set {index} of activation scales, and those of {self.index} are trained"
            )
        return self.scale


class ActivationQuantizer(nn.Module):
    """Activations on a grid, with one set of scales for each group of sampling steps.

    scale: Parameter (sets, *parameter shape), trainable; zero_point: buffer of the same shape, or larger where a scale
    is shared by several; multiple: uint8 buffer of the shape of zero_point, or None where there are none; calibrated:
    (sets,) bool buffer. shape: of one activation without the batch, e.g. (C, H, W).
    """

    zero_point: Tensor
    multiple: Tensor | None
    calibrated: Tensor

    def __init__(self, shape: tuple[int, ...], grid: Grid, granularity: Granularity, search: grids.Search, step: Step):
        super().__init__()
        self.grid, self.granularity = grid, granularity
        self.search: grids.Search = search
        self._shared = _Shared(step)
        whole = (1, *shape)
        self.scale = nn.Parameter(torch.ones(step.sets, *granularity.shape(whole)))
        self.register_buffer("zero_point", torch.zeros(step.sets, *of_zero_points(granularity).shape(whole)))
        multiples = isinstance(granularity, Multiples)
        self.register_buffer("multiple", torch.ones_like(self.zero_point, dtype=torch.uint8) if multiples else None)
        self.register_buffer("calibrated", torch.zeros(step.sets, dtype=torch.bool))
        self.name = ""  # where it is in a network, for messages
        self.calibrating = False
        self._trained: Trained | None = None

    def forward(self, x: Tensor) -> Tensor:
        index = self._shared.step.index  # refused where no step was set
        if self.calibrating:
            self.choose(self.granularity.rows(x.detach()), index)
        # Looked up on the device, so that one recorded call serves all sets (`quest.graphs`).
        scale = self._of_set(self.scale, x) if self._trained is None else self._trained.at(index)
        if self.multiple is not None:
            scale = scale * self._of_set(self.multiple, x)
        # A zero point is whole; where a method learns it, its gradient passes straight through.
        return grids.fake_quantize(x, scale, round_ste(self._of_set(self.zero_point, x)), self.grid)

    def _of_set(self, table: Tensor, x: Tensor) -> Tensor:
        """The parameters in use: one for all of x, or one for each sample (`Step.each`)."""
        position = self._shared.step.position
        found = table.index_select(0, position)
        if len(position) == 1:
            return found.squeeze(0)
        return found.squeeze(1).repeat_interleave(len(x) // len(position), 0)  # attention has its heads in the batch

    @contextmanager
    def training_scale(self) -> Iterator[Trained]:
        """Within, calls use a parameter in the place of ``scale``, one set at a time (`quest.learning.turns`)."""
        self._trained = Trained(nn.Parameter(self.scale[0].detach().clone()))
        try:
            yield self._trained
        finally:
            self._trained = None

    def choose(self, rows: Tensor, index: int, search: grids.Search | None = None) -> None:
        """Choose scale and zero point of the set ``index`` from rows of the granularity, as ``search`` says, by default
        as the quantizer was told to. Raises ValueError, naming the quantizer, for numbers that are not finite."""
        multiple = None
        try:
            if isinstance(self.granularity, Multiples):
                scale, zero_point, multiple = grids.search_multiples(rows, self.grid)
            elif isinstance(self.granularity, Offsets):
                scale, zero_point = grids.search_offsets(rows, self.grid)
            else:
                scale, zero_point = grids.search(rows, self.grid, search or self.search)
        except ValueError as error:
            raise ValueError(f"activation {self.name}: {error}") from error
        self.put(index, scale, zero_point, multiple)

    @torch.no_grad()
    def put(self, index: int, scale: Tensor, zero_point: Tensor, multiple: Tensor | None = None) -> None:
        """Take scales, zero points and multiples, as many as the granularity has, for the set ``index``."""
        self.scale[index] = scale.view_as(self.scale[index])
        self.zero_point[index] = zero_point.view_as(self.zero_point[index])
        if self.multiple is not None and multiple is not None:
            self.multiple[index] = multiple.view_as(self.multiple[index])
        self.calibrated[index] = True

    def extra_repr(self) -> str:
        return f"{self.grid.bits} bits, {self.grid.kind}, {self.granularity}, sets={len(self.scale)}"


class Split(nn.Module):
    """Two quantizers for the two halves of axis 1: the shortcut of a decoder block, whose input is a concatenation of
    features of different range (Q-Diffusion, section 3.3)."""

    def __init__(self, first: nn.Module, second: nn.Module, at: int):
        super().__init__()
        self.first, self.second, self.at = first, second, at

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.first(x[:, : self.at]), self.second(x[:, self.at :])], dim=1)


class Widths(nn.ModuleList):
    """A quantizer for each activation bit-width of a network, of which the sampling step says which is in use (PTQD,
    section 3.4)."""

    def __init__(self, quantizers: Iterable[ActivationQuantizer], step: Step):
        super().__init__(quantizers)
        self._shared = _Shared(step)

    @property
    def used(self) -> nn.Module:
        """The quantizer of the present sampling step."""
        return self[self._shared.step.width]

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


@contextmanager
def calibrating(network: nn.Module) -> Iterator[None]:
    """Within, each activation quantizer takes its scale for the present step from every batch that it sees, before it
    quantizes that batch: later layers are calibrated on already quantized inputs (QuEST released code, step 5)."""
    quantizers = [module for module in network.modules() if isinstance(module, ActivationQuantizer)]
    try:
        for quantizer in quantizers:
            quantizer.calibrating = True
        yield
    finally:
        for quantizer in quantizers:
            quantizer.calibrating = False
