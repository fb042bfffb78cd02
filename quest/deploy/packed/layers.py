"""The modules of a packed network: activation grids that follow the timestep, and layers that hold integer codes.

What they compute is what the quantized network computes: with D and z the scale and zero point of a weight or input,
    y = Σ (q_x - z_x)·(q_w - z_w) · D_x·D_w + bias.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quest.deploy.packed import bitstream
from quest.deploy.packed.description import LayerDescription, SiteDescription, TablesDescription
from quest.quantization.grid import Grid, fake_quantize
from quest.quantization.layers import operation

log = logging.getLogger(__name__)


class Tables(nn.Module):
    """The activation scales of a whole network by timestep, and which of them are in use.

    timesteps: (S,) int64, those that the network was calibrated at, noisiest first; rows: (S,) int64, the row of each.
    scales: (rows, places) float32, and zero_points: (rows, places of their own) integers: those of every activation
    grid one after another; multiples: (rows, places of their own) uint8, or None where no grid has them. scale,
    zero_point, multiple: float32, the row in use; step: (1,) int64, the calibrated step that it is of. A call at
    another timestep takes the row of the nearest calibrated one, the noisier of two that are as near.
    """

    timesteps: Tensor
    rows: Tensor
    scales: Tensor
    zero_points: Tensor
    multiples: Tensor | None
    row: Tensor
    step: Tensor
    scale: Tensor
    zero_point: Tensor
    multiple: Tensor | None

    def __init__(self, described: TablesDescription):
        super().__init__()
        steps, rows, places, multiples = described.steps, described.rows, described.places, described.multiple_places
        zeros = places if described.zero_places is None else described.zero_places
        self.register_buffer("timesteps", torch.zeros(steps, dtype=torch.long))
        self.register_buffer("rows", torch.zeros(steps, dtype=torch.long))
        self.register_buffer("scales", torch.ones(rows, places))
        self.register_buffer("zero_points", torch.zeros(rows, zeros, dtype=getattr(torch, described.zero_point)))
        self.register_buffer("multiples", torch.ones(rows, multiples, dtype=torch.uint8) if multiples else None)
        for name in ("row", "step"):
            self.register_buffer(name, torch.zeros(1, dtype=torch.long), persistent=False)
        self.register_buffer("scale", torch.zeros(places), persistent=False)
        self.register_buffer("zero_point", torch.zeros(zeros), persistent=False)
        self.register_buffer("multiple", torch.ones(multiples) if multiples else None, persistent=False)

    def set(self, timestep: Tensor | float) -> None:
        """Take the row of ``timestep``, a number or a tensor of equal ones, of which the first is read.

        On tensors throughout, so that a CUDA graph of the call follows the timestep that it is given.
        """
        present = torch.as_tensor(timestep).reshape(-1)[:1].to(self.timesteps.device)
        self.use((self.timesteps - present).abs().argmin().view(1))

    def use(self, step: Tensor) -> None:
        """Take the row of a calibrated step, (1,) int64, 0 is the noisiest."""
        row = self.rows.index_select(0, step)
        self.step.copy_(step)
        self.row.copy_(row)
        self.scale.copy_(self.scales.index_select(0, row)[0])
        self.zero_point.copy_(self.zero_points.index_select(0, row)[0])
        if self.multiples is not None and self.multiple is not None:
            self.multiple.copy_(self.multiples.index_select(0, row)[0])

    def extra_repr(self) -> str:
        return f"{len(self.timesteps)} calibrated timesteps, {tuple(self.scales.shape)} scales"


class _Shared(NamedTuple):
    """Holds the tables that modules share, so that they are no part of each."""

    tables: Tables


class ActivationGrid(nn.Module):
    """An activation on the grid of the present timestep."""

    bounds: Tensor | None

    def __init__(self, site: SiteDescription, tables: Tables):
        super().__init__()
        self.site = site
        grids = [Grid(bits, site.kind) for bits in site.bits]
        self.grid = grids[0]
        rows = len(tables.scales) // len(grids)
        bounds = torch.tensor([[grid.low, grid.high] for grid in grids]).repeat_interleave(rows, 0)
        self.register_buffer("bounds", bounds if len(grids) > 1 else None, persistent=False)
        self._shared = _Shared(tables)

    def now(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Scale and zero point of the present timestep, float32, in a layout that broadcasts to an activation; where
        there are multiples, the scale is times them."""
        scale, multiple = self.scale_and_multiple(device)
        return scale if multiple is None else scale * multiple, self.zero_point_now(device)

    def zero_point_now(self, device: torch.device) -> Tensor:
        """Zero point of the present timestep, as `now` has it, alone."""
        tables, site = self._shared.tables, self.site
        return _part(tables.zero_point, site.zero_points).view(site.zero_layout or site.layout).to(device)

    def scale_and_multiple(self, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Scale, and multiples if there are, of the present timestep; as `now` has them, but apart."""
        tables, site = self._shared.tables, self.site
        scale = _part(tables.scale, site.scales).view(site.layout).to(device)
        if tables.multiple is None or site.multiple_at is None:
            return scale, None
        return scale, _part(tables.multiple, site.multiples).view(site.zero_layout or site.layout).to(device)

    def all_zero_points(self) -> Tensor:
        """The zero points of every timestep, (rows, zero points of a row)."""
        return _part(self._shared.tables.zero_points, self.site.zero_points)

    def all_products(self) -> tuple[Tensor, Tensor] | None:
        """The least and the greatest of (code - zero point) · multiple of every timestep, (rows,) int32; None where
        there are no multiples."""
        multiples = self._shared.tables.multiples
        if multiples is None or self.site.multiple_at is None:
            return None
        multiples, zero_points = _part(multiples, self.site.multiples).int(), self.all_zero_points().int()
        bounds = zero_points.new_tensor([[self.grid.low, self.grid.high]]) if self.bounds is None else self.bounds
        low, high = bounds.to(zero_points.device).split(1, 1)  # (rows or 1, 1)
        return ((low - zero_points) * multiples).amin(1), ((high - zero_points) * multiples).amax(1)

    def present(self, table: Tensor) -> Tensor:
        """The row (1, …) of the present timestep in a table (rows, …)."""
        return table.index_select(0, self._shared.tables.row.to(table.device))

    def codes(self, x: Tensor) -> Tensor:
        """Integer codes of x, as float32."""
        return self._codes(x, *self.now(x.device))

    def _codes(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        low, high = self.bounds_now(x.device)
        return x.div(scale).round_().add_(zero_point).clamp_(low, high)

    def forward(self, x: Tensor) -> Tensor:
        """x on its grid, in x's dtype; gradients pass as in quantization-aware training."""
        scale, zero_point = self.now(x.device)
        if x.requires_grad and self.bounds is None:
            return fake_quantize(x.float(), scale, zero_point, self.grid).to(x.dtype)
        return self._codes(x, scale, zero_point).sub_(zero_point).mul_(scale).to(x.dtype)

    def bounds_now(self, device: torch.device) -> tuple[Any, Any]:
        """The lowest and the highest code at the present timestep."""
        bounds = self.bounds
        if bounds is None:
            return self.grid.low, self.grid.high
        low, high = self.present(bounds)[0].to(device).unbind()
        return low, high

    def extra_repr(self) -> str:
        return f"{self.site.bits} bits, {self.site.kind}, scales {self.site.layout}"


def _part(table: Tensor, places: range) -> Tensor:
    return table[..., places.start : places.stop]


class SplitGrid(nn.ModuleList):
    """Two grids for the two parts of axis 1: the shortcut of a decoder block, whose input is a concatenation."""

    def __init__(self, sites: list[ActivationGrid], at: int):
        super().__init__(sites)
        self.at = at

    def forward(self, x: Tensor) -> Tensor:
        first, second = self
        return torch.cat([first(x[:, : self.at]), second(x[:, self.at :])], dim=1)


class Packed(nn.Module):
    """What packed layers share. codes: flat uint8, as the description says; weight_scale, weight_zero_point:
    (out, runs), one for each run of consecutive inputs of an output channel."""

    codes: nn.Parameter
    weight_scale: Tensor
    weight_zero_point: Tensor
    bias: nn.Parameter | None
    kernel: nn.Module | None

    def take_over(self, layer: Any, description: LayerDescription, tables: Tables) -> None:
        """Become a packed ``layer``, whose bias is kept and whose weight is left."""
        nn.Module.__init__(self)
        geometry = {key: value for key, value in vars(layer).items() if not key.startswith("_") and key != "training"}
        for name, value in geometry.items():
            setattr(self, name, value)
        if isinstance(layer, nn.modules.conv._ConvNd):
            self._reversed_padding_repeated_twice = layer._reversed_padding_repeated_twice
        self.description = description
        self._operation = operation(layer)
        size = description.packed_bytes
        self.codes = nn.Parameter(torch.empty(size, dtype=torch.uint8), requires_grad=False)
        scales = description.shape[0], description.scales
        self.register_buffer("weight_scale", torch.empty(scales))
        self.register_buffer("weight_zero_point", torch.empty(scales, dtype=getattr(torch, description.zero_point)))
        bias: Any = layer.bias
        self.register_parameter("bias", bias)
        grids = [ActivationGrid(site, tables) for site in description.input]
        at = description.split_at
        self.input = nn.Identity() if not grids else grids[0] if at is None else SplitGrid(grids, at)
        self.register_module("kernel", None)

    @property
    def weight(self) -> Tensor:
        """The weight on its grid, (out, in, …), in the precision of the bias; made anew each time."""
        return self.dequantized(torch.float32 if self.bias is None else self.bias.dtype)

    def whole_codes(self) -> Tensor:
        """Integer codes of the weight, (out, in, …) int32."""
        packed, shape = self.codes, torch.Size(self.description.shape)
        if self.description.dense:
            return bitstream.unpack(packed, self.description.bits, shape)
        if self.description.bits <= 4:
            packed = torch.stack([packed & 15, packed >> 4], 1).reshape(-1)[: shape.numel()]
        return packed.to(torch.int32).view(shape)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight on its grid, (out, in, …)."""
        codes = self.whole_codes().flatten(1)
        runs = self.description.runs
        scale, zero_point = self.weight_scale, self.weight_zero_point.float()
        if len(runs) > 1 and len(set(runs)) == 1:
            codes, scale, zero_point = codes.view(len(codes), len(runs), -1), scale[..., None], zero_point[..., None]
        elif len(runs) > 1:
            lengths = torch.tensor(runs, device=codes.device)
            scale, zero_point = (each.repeat_interleave(lengths, 1) for each in (scale, zero_point))
        return ((codes.float() - zero_point) * scale).view(self.description.shape).to(dtype)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        if self.kernel is not None and not x.requires_grad:
            return self.kernel(x)
        return self._operation(self.input(x), self.dequantized(x.dtype), self.bias)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        if self.kernel is not None and fn(self.weight_scale).device != self.weight_scale.device:
            log.warning("a packed layer moved to another device: call quest.use_kernels again, it computes in floats")
            self.kernel = None
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        return f"{tuple(self.description.shape)}, {self.description.bits} bits"


class PackedLinear(Packed, nn.Linear):  # type: ignore[misc]
    """A linear layer of integer codes. Called like nn.Linear it makes a plain one, as libraries that wrap layers
    expect of a layer's class."""

    def __new__(cls, *args: Any, **named: Any) -> Any:
        return nn.Linear(*args, **named) if args or named else super().__new__(cls)


class PackedConv2d(Packed, nn.Conv2d):  # type: ignore[misc]
    """A convolution of images of integer codes; see `PackedLinear`."""

    def __new__(cls, *args: Any, **named: Any) -> Any:
        return nn.Conv2d(*args, **named) if args or named else super().__new__(cls)


class PackedConv1d(Packed, nn.Conv1d):  # type: ignore[misc]
    """A convolution of sequences of integer codes; see `PackedLinear`."""

    def __new__(cls, *args: Any, **named: Any) -> Any:
        return nn.Conv1d(*args, **named) if args or named else super().__new__(cls)


KINDS: tuple[tuple[type[nn.Module], type[Packed]], ...] = (
    (nn.Linear, PackedLinear),
    (nn.Conv2d, PackedConv2d),
    (nn.Conv1d, PackedConv1d),
)


def pack_layer(layer: nn.Module, description: LayerDescription, tables: Tables) -> Packed:
    """``layer`` as a packed one, its codes and scales still to be given. Raises ValueError for another kind of layer,
    or one of another shape."""
    for kind, packed in KINDS:
        if isinstance(layer, kind):
            found = tuple(layer.weight.shape)  # type: ignore[arg-type]
            if found != tuple(description.shape):
                raise ValueError(f"found a weight of shape {found}, expected {tuple(description.shape)}")
            made = packed.__new__(packed)
            made.take_over(layer, description, tables)
            return made
    raise ValueError(f"found {type(layer).__name__}, expected a linear layer or a convolution")


class Correction(nn.Module):
    """What PTQD's sampler takes off a prediction ε̂: e = (ε̂ - bias) / (1 + k⁺), of the nearest calibrated step.

    slope: (S,) float32, k; bias: (S, C) float32.
    """

    slope: Tensor
    bias: Tensor

    def __init__(self, steps: int, channels: int, tables: Tables):
        super().__init__()
        self.register_buffer("slope", torch.empty(steps))
        self.register_buffer("bias", torch.empty(steps, channels))
        self._shared = _Shared(tables)

    def forward(self, predicted: Tensor) -> Tensor:
        """predicted: (N, C, H, W)."""
        index = self._shared.tables.step.to(self.slope.device)
        bias, slope = self.bias.index_select(0, index), self.slope.index_select(0, index)
        return ((predicted - bias.view(1, -1, 1, 1)) / (1 + slope.clamp(min=0))).to(predicted.dtype)
