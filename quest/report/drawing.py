"""What all pictures share: colours, plain axes, strips of images, and files whose bytes depend on nothing else."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from quest.artifacts import atomic
from quest.config.methods import METHODS, base_method
from quest.config.values import FULL_PRECISION

if TYPE_CHECKING:
    from numpy.typing import NDArray

DPI = 150
_SMALL_DPI = 100
# Okabe and Ito (2008): told apart in every common form of colour blindness. Markers tell them apart in print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A6A00")
_MARKERS = "osD^vPX"
_DASHES = ("-", "--", ":", "-.")
_NO_METHOD = "#7f7f7f"  # of results of a method that is no more
INK = "#333333"
MIN_PIXELS = 64  # side of a shown image; smaller ones are enlarged by a whole factor


def colour(index: int) -> str:
    """The colour of line ``index``, however many there are."""
    return _COLOURS[index % len(_COLOURS)]


def marker(index: int) -> str:
    """The marker of line ``index``: another one each time that the colours start again."""
    return _MARKERS[(index + index // len(_COLOURS)) % len(_MARKERS)]


def dashes(index: int) -> str:
    """The style of line ``index``, where markers would make an SVG heavy."""
    return _DASHES[index % len(_DASHES)]


def method_colour(method: str) -> str:
    """The colour of a method in every picture; its variants have it too, and full precision has that of the text."""
    if method == FULL_PRECISION:
        return INK
    base = base_method(method)
    return colour(METHODS.index(base)) if base in METHODS else _NO_METHOD


def method_styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How matplotlib draws each of ``methods``: colour and marker of the method; its variants, in their order, share
    the colour and have other markers and dashes, 18 of each method without a repetition."""
    styles, variants = {}, dict.fromkeys(map(base_method, methods), 0)
    for method in methods:
        base = base_method(method)
        place = METHODS.index(base) if base in METHODS else len(METHODS)
        variants[base] += method != base
        number = variants[base] if method != base else 0
        styles[method] = {
            "color": method_colour(method),
            "marker": _MARKERS[(place + number) % len(_MARKERS)],
            "linestyle": _DASHES[1 + number // len(_MARKERS) % (len(_DASHES) - 1)] if number else "-",
        }
    return styles


def figure(width: float, height: float, **options: Any) -> Figure:
    """An empty figure of ``width`` × ``height`` inches."""
    made = Figure(figsize=(width, height), dpi=DPI, facecolor="white", **options)
    FigureCanvasAgg(made)
    return made


def plain(axes: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Axes with a title and labels, faint horizontal lines and no frame."""
    axes.set_title(title, loc="left", size=11, color=INK)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)


def strip(images: NDArray[np.uint8], pixels: int = MIN_PIXELS) -> NDArray[np.uint8]:
    """Images (N, C, H, W) side by side as (h, w, 3) with white between them, each enlarged by a whole factor until it
    has at least ``pixels`` a side. Raises ValueError unless they have 1 or 3 channels."""
    count, channels, height, width = images.shape
    if channels not in (1, 3):
        raise ValueError(f"images with {channels} channels cannot be shown; expected 1 or 3")
    factor = max(1, -(-pixels // min(height, width)))
    gap = 4
    cells = images.transpose(0, 2, 3, 1).repeat(factor, axis=1).repeat(factor, axis=2).repeat(3 // channels, axis=3)
    cells = np.pad(cells, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)
    return cells.transpose(1, 0, 2, 3).reshape(height * factor, count * (width * factor + gap), 3)[:, :-gap]


def save(drawn: Figure, path: Path, small: bool = False) -> None:
    """Write a PNG, or an SVG whose text stays text, as the suffix of ``path`` says; equal figures give equal bytes.

    small: a PNG of fewer pixels and 256 colours, a quarter of the bytes.
    """
    with atomic(path) as partial, mpl.rc_context({"svg.hashsalt": "quest", "svg.fonttype": "none"}):
        if path.suffix == ".svg":
            drawn.savefig(partial, format="svg", metadata={"Date": None})
        elif small:
            full = io.BytesIO()
            drawn.savefig(full, dpi=_SMALL_DPI, format="png")
            with Image.open(full) as image:
                reduced = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
            reduced.save(partial, format="png", optimize=True)
        else:
            drawn.savefig(partial, dpi=DPI, format="png", metadata={"Software": None})
