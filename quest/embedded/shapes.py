"""Pictures drawn by a program: one shape on a plain background, with labels and captions that can be checked.

Shapes are signed distance fields, anti-aliased over one pixel. Every number that picture i of a stream needs comes
from a hash of (stream, i), so a picture is the same whatever the batch. It is drawn on any device; between devices
some values differ by one level.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "cross", "ring", "star")
COLOURS = ("red", "green", "blue", "yellow")
BACKGROUNDS = (*COLOURS, "white", "black")  # any but the shape's own colour
SIZES = ("small", "large")
CLASSES = len(SHAPES) * len(COLOURS)
_PER_CLASS = (len(BACKGROUNDS) - 1) * len(SIZES)
LABELS = CLASSES * _PER_CLASS

_RGB = ((210, 45, 45), (45, 155, 65), (50, 85, 205), (230, 200, 55), (230, 230, 230), (25, 25, 25))
_JITTER = 20  # levels that each channel of a colour varies by, up and down
_RADII = ((5.5, 7.5), (10.0, 13.0))  # pixels of 32, of each size
_ANGLE = 0.4  # radians to either side
_COLUMNS = 11  # random numbers of one picture
_CHUNK = 4096  # pictures that are drawn at once


class Attributes(NamedTuple):
    """What a caption says, in words."""

    size: str
    colour: str
    shape: str
    background: str


def class_of(labels: Any) -> Any:
    """Class (shape and colour, 0 to CLASSES - 1) of labels, a tensor or one integer."""
    return labels // _PER_CLASS


def _parts(labels: Any) -> tuple[Any, Any, Any, Any]:
    """Shape, colour, background and size of labels, as indices of the words; of a tensor or one integer."""
    classes = class_of(labels)
    shape, colour = classes // len(COLOURS), classes % len(COLOURS)
    rank, size = labels % _PER_CLASS // len(SIZES), labels % len(SIZES)
    return shape, colour, rank + (rank >= colour), size


def attributes(label: int) -> Attributes:
    """The words of a label, 0 to LABELS - 1."""
    shape, colour, background, size = _parts(label)
    return Attributes(SIZES[size], COLOURS[colour], SHAPES[shape], BACKGROUNDS[background])


def caption(label: int) -> str:
    """Like "a small red circle on a blue background"."""
    size, colour, shape, background = attributes(label)
    return f"a {size} {colour} {shape} on a {background} background"


CAPTIONS = tuple(caption(label) for label in range(LABELS))
"""The caption of each label."""
LABEL_OF = {text: label for label, text in enumerate(CAPTIONS)}
"""The label of each caption."""


def captions(number: int, seed: int) -> list[str]:
    """``number`` captions drawn at random, each equally likely."""
    indices = torch.arange(number)
    return [CAPTIONS[label] for label in _labels(_uniform(f"captions/{seed}", indices)[:, 0]).tolist()]


def draw(
    stream: str, indices: Sequence[int], size: int = 32, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Pictures ``indices`` of a ``stream``: (n, 3, size, size) uint8, and their labels (n,) int64, on the device."""
    chunks = torch.as_tensor(indices, device=device).split(_CHUNK)
    images, labels = zip(*(_draw(_uniform(stream, chunk), size) for chunk in chunks), strict=True)
    return torch.cat(images), torch.cat(labels)


def _draw(u: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Pictures of the random numbers u (n, _COLUMNS) in [0, 1)."""
    labels = _labels(u[:, 0])
    shape, colour, background, large = _parts(labels)
    unit = size / 32
    radii = torch.tensor(_RADII, device=u.device)[large] * unit
    radius = radii[:, 0] + u[:, 1] * (radii[:, 1] - radii[:, 0])
    room = (size / 2 - 1.15 * radius - unit).clamp(min=0).unsqueeze(1)  # so that every shape is whole
    centre = size / 2 + (2 * u[:, 2:4] - 1) * room
    angle = (2 * u[:, 4] - 1) * _ANGLE
    # Pixel centres in the shape's own frame, in units of its radius.
    pixels = torch.arange(size, device=u.device) + 0.5
    x = (pixels.view(1, 1, -1) - centre[:, 0].view(-1, 1, 1)) / radius.view(-1, 1, 1)
    y = (centre[:, 1].view(-1, 1, 1) - pixels.view(1, -1, 1)) / radius.view(-1, 1, 1)
    cos, sin = angle.cos().view(-1, 1, 1), angle.sin().view(-1, 1, 1)
    x, y = cos * x + sin * y, cos * y - sin * x
    distance = torch.empty_like(x)
    for index, name in enumerate(SHAPES):
        chosen = shape == index
        distance[chosen] = _DISTANCES[name](x[chosen], y[chosen])
    cover = (0.5 - distance * radius.view(-1, 1, 1)).clamp(0, 1).unsqueeze(1)
    palette = torch.tensor(_RGB, device=u.device, dtype=torch.float32)
    front = palette[colour] + (2 * u[:, 5:8] - 1) * _JITTER
    back = palette[background] + (2 * u[:, 8:11] - 1) * _JITTER
    images = cover * front.view(-1, 3, 1, 1) + (1 - cover) * back.view(-1, 3, 1, 1)
    return images.round().clamp(0, 255).to(torch.uint8), labels


def _labels(u: Tensor) -> Tensor:
    return (u * LABELS).long().clamp(max=LABELS - 1)


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 0.9


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.8


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    sides = torch.maximum(x.abs() * math.sin(math.pi / 3) + y * math.cos(math.pi / 3), -y)
    return sides - 0.52


def _cross(x: Tensor, y: Tensor) -> Tensor:
    longer, shorter = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
    return torch.maximum(longer - 0.95, shorter - 0.32)


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.7).abs() - 0.24


def _star(x: Tensor, y: Tensor) -> Tensor:
    """Five tips at radius 1.05, five notches at 0.45: folded into one tenth, it is a half-plane."""
    tenth = math.pi / 5
    angle = torch.remainder(torch.atan2(x, y) + tenth, 2 * tenth) - tenth  # of the nearest tip, the first one upwards
    radius = torch.hypot(x, y)
    along, across = radius * angle.cos(), radius * angle.sin().abs()
    tip, notch = 1.05, (0.45 * math.cos(tenth), 0.45 * math.sin(tenth))
    edge = (notch[0] - tip, notch[1])
    length = math.hypot(*edge)
    return (edge[1] * (along - tip) - edge[0] * across) / length


_DISTANCES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "ring": _ring,
    "star": _star,
}


def _uniform(stream: str, indices: Tensor) -> Tensor:
    """Random numbers (n, _COLUMNS) float32 in [0, 1) of pictures ``indices``: splitmix64 of a counter."""
    key = int.from_bytes(hashlib.sha256(f"shapes/{stream}".encode()).digest()[:8], "little")
    columns = torch.arange(1, _COLUMNS + 1, device=indices.device)
    counter = indices.unsqueeze(1) * _COLUMNS + columns
    x = counter * _signed(0x9E3779B97F4A7C15) + _signed(key)  # int64 wraps around, as the generator wants
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    x = x ^ _shifted(x, 31)
    return _shifted(x, 40).float() / 2**24


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """An unsigned 64-bit integer as the signed one of the same bits."""
    return value - 2**64 if value >= 2**63 else value
