"""What shares a scale. A granularity turns a tensor into rows, one for each scale; scales broadcast to its view.

| granularity | (N, C, H, W) activation | (N, tokens, channels) | (N, C) | weight (out, in, …) |
|---|---|---|---|---|
| PerTensor | one scale | one scale | one scale | one scale |
| Offsets(axis) | one scale, C zero points (axis 1) | one scale, C zero points (2) | – | – |
| Multiples(axis) | one scale, C zero points and multiples (1) | the same (2) | the same (1) | – |
| PerAxis(axis) | C scales (axis 1) | one a token (1) or a channel (2) | C scales (axis 1) | out scales (axis 0) |
| PerGroup(size) | – | – | – | out × in/size scales |
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Size, Tensor


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor."""

    def view(self, x: Tensor) -> Tensor:
        """x in the layout that scales broadcast to."""
        return x

    def shape(self, shape: Size | tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the scales of a tensor of ``shape``, in the layout of `view`."""
        return (1,) * len(shape)

    def rows(self, x: Tensor) -> Tensor:
        """x as (scales, elements)."""
        return x.reshape(1, -1)


@dataclass(frozen=True)
class Offsets:
    """One scale for the whole tensor, and a zero point for each index of ``axis``: what a channel is shifted by leaves
    a sum of integers as a constant, where a scale of its own would not."""

    axis: int

    def view(self, x: Tensor) -> Tensor:
        return x

    def shape(self, shape: Size | tuple[int, ...]) -> tuple[int, ...]:
        return PerTensor().shape(shape)

    def rows(self, x: Tensor) -> Tensor:
        """x as (zero points, elements)."""
        return PerAxis(self.axis).rows(x)


@dataclass(frozen=True)
class Multiples(Offsets):
    """`Offsets` where each index of ``axis`` has a small whole number m as well, and m times the scale. Codes of few
    bits times m fit a byte and have one scale, so that their sums are as cheap as with `PerTensor`. (FQ-ViT, IJCAI
    2022, has powers of two for m, which are coarser.)"""


@dataclass(frozen=True)
class PerAxis:
    """One scale for each index of ``axis``."""

    axis: int

    def view(self, x: Tensor) -> Tensor:
        return x

    def shape(self, shape: Size | tuple[int, ...]) -> tuple[int, ...]:
        if not -len(shape) <= self.axis < len(shape):
            raise ValueError(
                f"granularity per axis {self.axis} of a tensor of shape {tuple(shape)}, which has no such axis"
            )
        axis = self.axis % len(shape)
        return tuple(size if dim == axis else 1 for dim, size in enumerate(shape))

    def rows(self, x: Tensor) -> Tensor:
        return x.movedim(self.axis, 0).reshape(x.shape[self.axis], -1)


@dataclass(frozen=True)
class PerGroup:
    """One scale for each run of ``size`` consecutive inputs of an output channel; weights only."""

    size: int

    def view(self, x: Tensor) -> Tensor:
        self.shape(x.shape)
        return x.reshape(x.shape[0], -1, self.size)

    def shape(self, shape: Size | tuple[int, ...]) -> tuple[int, ...]:
        inputs = Size(shape[1:]).numel()
        if len(shape) < 2 or self.size < 1 or inputs % self.size:
            raise ValueError(
                f"granularity in groups of {self.size} does not fit shape {tuple(shape)}: found {inputs} inputs to a "
                "channel, expected a multiple of the group (quantizer.weight_group)"
            )
        return (shape[0], inputs // self.size, 1)

    def rows(self, x: Tensor) -> Tensor:
        return self.view(x).reshape(-1, self.size)


Granularity = PerTensor | Offsets | Multiples | PerAxis | PerGroup


def of_zero_points(granularity: Granularity) -> Granularity:
    """What shares a zero point, where ``granularity`` says what shares a scale: the same, but for offsets."""
    return PerAxis(granularity.axis) if isinstance(granularity, Offsets) else granularity


def for_activation(name: str, ndim: int) -> Granularity:
    """The activation granularity called ``name`` in the configuration, for a tensor of ``ndim`` dimensions.

    "per_channel": axis 1 of images (N, C, H, W) and of vectors (N, C), the last axis of token sequences
    (N, tokens, C); "offsets": one scale, and zero points of those, but for vectors one (those of the time embedding are
    the same for every sample of a step: a channel has no range); "multiples": a multiple beside each zero point;
    "per_token": axis 1 of token sequences, one scale
    elsewhere (images have no token axis).
    """
    if name == "per_tensor" or (name == "per_token" and ndim != 3) or (name == "offsets" and ndim == 2):
        return PerTensor()
    if name == "per_token":
        return PerAxis(1)
    channels = 2 if ndim == 3 else 1
    if name == "per_channel":
        return PerAxis(channels)
    if name == "offsets":
        return Offsets(channels)
    if name == "multiples":
        return Multiples(channels)
    raise ValueError(
        f"activation granularity {name!r}; expected per_tensor, offsets, multiples, per_token or per_channel"
    )
