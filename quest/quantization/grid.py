"""The uniform grid as pure functions: choose a scale, to integer codes, and back.

A grid of b bits has at most 2^b codes. With scale D and zero point z,
    code = clamp(round(x / D) + z, low, high),     value = (code - z) · D        (QuEST, section 3.1)
Parameters are searched for many groups at once: `x` is a (groups, elements) view, one row for each scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quest.quantization import fused

MIN_SCALE = 1e-8  # keeps all-zero groups on the grid; their codes are all zero
_SHRINKS = tuple(1 - 0.01 * i for i in range(80))
_ERROR_POWER = 2.4
_PERCENTILES = (0.999, 0.9999, 0.99999)
_OFFSET_PERCENTILES = (0.998, 0.99)  # of a channel, which is narrower than its tensor
_OFFSET_STRIDE = 6  # of the shrinks
_OFFSET_SAMPLE = 2**17  # elements whose errors are compared
# Wider than those of offsets: what is clipped shrinks in every layer alike, and these errors add up through a network.
_MULTIPLE_PERCENTILES = (0.9999, 0.999)
_MULTIPLE_SHRINKS = _SHRINKS[:48:_OFFSET_STRIDE]
_MULTIPLE_SAMPLE = 2**15
_SIGNED_BYTE = (-128, 127)
# Elements worked on at once, so that the search adds a bounded amount of memory: on a CPU what its caches hold, on
# other devices what keeps them busy.
_CHUNK = {"cpu": 2**18}
_DEVICE_CHUNK = 2**24

Kind = Literal["asymmetric", "symmetric", "legacy_symmetric", "positive"]
Search = Literal["max", "mse", "percentile"]


@dataclass(frozen=True)
class Grid:
    """Integer codes of ``bits`` bits.

    kind: "asymmetric" has codes 0 … 2^b-1 and any zero point; "symmetric" has codes -2^(b-1) … 2^(b-1)-1 and zero
    point 0; "positive" has codes 0 … 2^b-1 and zero point 0 (attention probabilities). "legacy_symmetric" has codes
    -2^b … 2^b and zero point 0, more than b bits hold: to find out what QuEST's early released code gained by it.
    """

    bits: int
    kind: Kind = "asymmetric"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise ValueError(f"a grid of {self.bits} bits; expected 2 to 16")

    @property
    def low(self) -> int:
        """Smallest code."""
        return {"symmetric": -(2 ** (self.bits - 1)), "legacy_symmetric": -(2**self.bits)}.get(self.kind, 0)

    @property
    def high(self) -> int:
        """Largest code."""
        return 2**self.bits if self.kind == "legacy_symmetric" else self.low + 2**self.bits - 1

    @property
    def levels(self) -> int:
        """How many codes there are: 2^b, but for the legacy grid."""
        return self.high - self.low + 1


def search(x: Tensor, grid: Grid, method: Search) -> tuple[Tensor, Tensor]:
    """Scale and zero point of each group.

    x: (groups, elements) float. Returns scale (groups,) and zero_point (groups,), both of x's dtype; zero points are
    whole numbers. Method "max" spans the extremes; "mse" takes the best of 80 shrinks of them by mean |error|^2.4
    (Q-Diffusion's released search); "percentile" the best of three percentile ranges by squared error.
    Raises ValueError when x has no element or a value that is not finite.
    """
    _require_finite(x)
    chunk = _CHUNK.get(x.device.type, _DEVICE_CHUNK)
    parts = [_search_chunk(part, grid, method, chunk) for part in x.split(max(1, chunk // x.shape[1]))]
    scale, zero_point = (torch.cat(part) for part in zip(*parts, strict=True))
    return scale, zero_point


def search_offsets(x: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """One scale for all of x, (1,), and the zero point of each row, (rows,): those of the least squared error.

    x: (rows, elements) float. Tried are ranges of three percentiles, shrunk, of which the widest row's gives the scale;
    the middle of every row's own range is in the middle of the codes. Errors are those of elements evenly chosen.
    Raises ValueError as `search` does.
    """
    _require_finite(x)
    few = x[:, :: max(1, x.numel() // _OFFSET_SAMPLE)]
    shrinks = x.new_tensor(_SHRINKS[::_OFFSET_STRIDE])
    tried = []
    for low, high in _ranges(x, _OFFSET_PERCENTILES):
        scales = ((high - low).amax() * shrinks / (grid.levels - 1)).clamp(min=MIN_SCALE)
        zero_points = _in_the_middle(low, high, scales.unsqueeze(1), grid)
        quantized = fake_quantize(few, scales.view(-1, 1, 1), zero_points.unsqueeze(2), grid)
        tried.append(((quantized - few).square_().mean((1, 2)), scales, zero_points))
    errors, scales, zero_points = (torch.cat(part) for part in zip(*tried, strict=True))
    best = errors.argmin()
    return scales[best].view(1), zero_points[best]


def largest_multiple(grid: Grid) -> int:
    """The largest whole number times which codes fit a signed byte. Raises ValueError where that is 1."""
    largest = _SIGNED_BYTE[1] // (grid.levels - 1)
    if largest < 2:
        raise ValueError(f"multiples at {grid.bits} bits: no multiple of a code fits a byte; expected at most 6 bits")
    return largest


def search_multiples(x: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """One scale for all of x, (1,); zero point and multiple of each row, (rows,): those of the least squared error.

    x: (rows, elements) float. The scale is tried from that with which the largest multiple spans the widest row
    downwards; a row takes, of ranges of three percentiles, that which errs least, and the multiple that spans it. Zero
    points are such that (code - zero point) · multiple fits a signed byte. Errors are those of elements evenly chosen.
    Raises ValueError as `search` does.
    """
    _require_finite(x)
    few = x[:, :: x.numel() // _MULTIPLE_SAMPLE | 1]  # an odd stride meets every column of an image
    ranges = _ranges(x, _MULTIPLE_PERCENTILES)
    low, high = (torch.stack(bounds) for bounds in zip(*ranges, strict=True))  # (ranges, rows)
    least, most = _SIGNED_BYTE
    largest, span = largest_multiple(grid), grid.levels - 1
    # A row that is far from zero for its width has its distance in the zero point.
    widest = torch.maximum((high - low).amax() / span / largest, x.abs().amax() / most)
    tried = []
    for scale in (widest * x.new_tensor(_MULTIPLE_SHRINKS)).clamp(min=MIN_SCALE):
        multiple = torch.ceil((high - low) / span / scale).clamp(1, largest)
        step = scale * multiple
        zero_point = _in_the_middle(low, high, step, grid)
        bounds = torch.ceil(grid.high - most / multiple), torch.floor(grid.low - least / multiple)
        zero_point = torch.minimum(torch.maximum(zero_point, bounds[0]), bounds[1])
        quantized = fake_quantize(few, step.unsqueeze(2), zero_point.unsqueeze(2), grid)
        error, best = (quantized - few).square_().mean(2).min(0, keepdim=True)
        tried.append((error.sum().view(1), scale.view(1), zero_point.gather(0, best)[0], multiple.gather(0, best)[0]))
    errors, *found = (torch.stack(part) for part in zip(*tried, strict=True))
    scale, zero_point, multiple = (part[errors.argmin()] for part in found)
    return scale, zero_point, multiple


def from_range(low: Tensor, high: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Scale and zero point that span low … high; zero is always inside, so that padding and empty groups are exact."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    if grid.kind in ("symmetric", "legacy_symmetric"):
        scale = torch.maximum(-low, high) / grid.high
        return scale.clamp(min=MIN_SCALE), torch.zeros_like(scale)
    scale = ((high - low) / (grid.high - grid.low)).clamp(min=MIN_SCALE)
    return scale, torch.zeros_like(scale) if grid.kind == "positive" else torch.round(-low / scale)


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
    """Integer codes (int32) of x; scale and zero_point broadcast to x."""
    return torch.clamp(torch.round(x / scale) + zero_point, grid.low, grid.high).to(torch.int32)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Values of integer codes, in the dtype of scale."""
    return (codes.to(scale.dtype) - zero_point) * scale


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
    """x on the grid, as floats; gradients as in LSQ without its normaliser (QuEST released quantizer).

    Inside the range dx̂/dx = 1 and dx̂/dD = round(x/D) - x/D; where clipped, dx̂/dx = 0, dx̂/dD = bound - z and
    dx̂/dz = -D.
    """
    return _FakeQuantize.apply(x, scale, zero_point, grid.low, grid.high)  # type: ignore[return-value]


class _FakeQuantize(torch.autograd.Function):
    """Written out because autograd through round and clamp keeps four tensors of x's size where one is enough."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
        ctx.shared = scale.shape
        if zero_point.numel() > scale.numel():  # a scale shared by more than a zero point is
            scale = scale.expand_as(zero_point)
        ctx.save_for_backward(x, scale, zero_point)
        ctx.bounds, ctx.over = (low, high), fused.layout(x, scale)
        if ctx.over is not None:
            return fused.quantize(x, scale, zero_point, ctx.bounds, ctx.over)
        return x.div(scale).round_().add_(zero_point).clamp_(low, high).sub_(zero_point).mul_(scale)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override]
        x, scale, zero_point = ctx.saved_tensors
        if ctx.over is not None:
            to_x, to_scale, to_zero_point = fused.derivatives(gradient, x, scale, zero_point, ctx.bounds, ctx.over)
            wanted = ctx.needs_input_grad
            to_scale = to_scale.sum_to_size(ctx.shared)
            return to_x, to_scale if wanted[1] else None, to_zero_point if wanted[2] else None, None, None
        low, high = ctx.bounds
        ratio = x / scale
        rounded = ratio.round()
        code = rounded + zero_point
        inside = (code >= low) & (code <= high)
        to_x = gradient * inside
        to_scale = to_zero_point = None
        if ctx.needs_input_grad[1]:
            slope = torch.where(inside, rounded - ratio, code.clamp(low, high) - zero_point)
            to_scale = (gradient * slope).sum_to_size(ctx.shared)
        if ctx.needs_input_grad[2]:
            to_zero_point = (gradient * ~inside * -scale).sum_to_size(zero_point.shape)
        return to_x, to_scale, to_zero_point, None, None


def _require_finite(x: Tensor) -> None:
    if x.numel() == 0 or not bool(torch.isfinite(x).all()):
        found = "no values" if x.numel() == 0 else f"{int((~torch.isfinite(x)).sum())} values that are NaN or infinite"
        raise ValueError(f"cannot choose a scale: found {found}, expected finite numbers")


def _search_chunk(x: Tensor, grid: Grid, method: Search, chunk: int) -> tuple[Tensor, Tensor]:
    if method == "max":
        return from_range(x.amin(1), x.amax(1), grid)
    candidates, power = (_shrinks(x, grid), _ERROR_POWER) if method == "mse" else (_percentiles(x), 2.0)
    low, high = (torch.stack(bounds) for bounds in zip(*candidates, strict=True))
    scale, zero_point = from_range(low, high, grid)  # (candidates, groups)
    at_once = max(1, chunk // x.numel())
    pairs = zip(scale.split(at_once), zero_point.split(at_once), strict=True)
    best = torch.cat([_error(x, *pair, grid, power) for pair in pairs]).argmin(0, keepdim=True)  # the first of equals
    return scale.gather(0, best)[0], zero_point.gather(0, best)[0]


def _shrinks(x: Tensor, grid: Grid) -> Iterator[tuple[Tensor, Tensor]]:
    low, high = x.aminmax(dim=1)
    if grid.kind == "positive":
        low = torch.zeros_like(low)
    for shrink in _SHRINKS:
        yield low * shrink, high * shrink


def _ranges(x: Tensor, percentiles: tuple[float, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    yield x.amin(1), x.amax(1)
    yield from _percentiles(x, percentiles)


def _in_the_middle(low: Tensor, high: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """The zero point with which the middle of low … high is in the middle of the codes."""
    return torch.round((grid.low + grid.high) / 2 - (low + high) / (2 * scale))


def _percentiles(x: Tensor, percentiles: tuple[float, ...] = _PERCENTILES) -> Iterator[tuple[Tensor, Tensor]]:
    # Only the tails are sorted: torch.quantile sorts everything and stops at 16 M elements.
    last = x.shape[1] - 1
    tail = min(int((1 - min(percentiles)) * last) + 2, x.shape[1])
    highest, lowest = x.topk(tail, dim=1).values, x.topk(tail, dim=1, largest=False).values
    for percentile in percentiles:
        position = (1 - percentile) * last
        yield _at(lowest, position), _at(highest, position)


def _at(ordered: Tensor, position: float) -> Tensor:
    """The linearly interpolated value of each sorted row at a fractional position."""
    below = int(position)
    above = min(below + 1, ordered.shape[1] - 1)
    return torch.lerp(ordered[:, below], ordered[:, above], position - below)


def _error(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid, power: float) -> Tensor:
    """Mean |x - x̂|^power (candidates, groups) of each group, x (groups, elements), on each of its candidate grids."""
    scale, zero_point = scale.unsqueeze(2), zero_point.unsqueeze(2)
    error = x.div(scale).round_().add_(zero_point).clamp_(grid.low, grid.high).sub_(zero_point).mul_(scale).sub_(x)
    if power == 2:
        return error.square_().mean(2)
    return error.abs_().log_().mul_(power).exp_().mean(2)  # twice as fast as pow; log 0 is -inf, of which exp is 0
