"""Quality against size, method by method: points joined into a table, a list of the best, and a picture. Without torch.

A point is one chain at one choice of bits, a JSON artifact: uniform weight bits, or bits chosen for each layer in as
many bytes. Points are compared where they are of the same images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from quest import artifacts
from quest.artifacts import ArtifactError
from quest.config.values import Bits
from quest.quantization.allocation import WIDTHS
from quest.report import drawing, rows, sheet
from quest.report.figures import front
from quest.report.paired import CONFIDENCE, interval_of_images
from quest.report.rows import MISSING, Row
from quest.report.sheet import Sheet

KIND = "point"
UNIFORM, MIXED = CHOICES = ("uniform", "mixed")
_WORDS = {UNIFORM: "uniform", MIXED: "chosen"}
_STYLES: dict[str, Any] = {UNIFORM: "--", MIXED: "-"}
_BEST: dict[str, Any] = {"color": "#cccccc", "linewidth": 5}
CHAIN, TABLE = "chain", "table"
"""What a point is of, `source` of its row: a chain that was made for it, or a cell of the tables."""
_ENDS = (WIDTHS[0], WIDTHS[-1])  # weight bits of which there is one choice, which belongs to both lines
COLUMNS = (
    *("dataset", "method", "bits", "chosen", "seed", "source", "share", "bytes", "mean_weight_bits", "predicted_mse"),
    *("psnr", "worst_psnr", "images", "layers", "seconds"),
)


@dataclass(frozen=True)
class Point:
    """row: its numbers. errors: mean squared error of each image."""

    row: Row
    errors: Sequence[float]


def name(method: str, bits: Bits | str, chosen: str, seed: int) -> str:
    """A point as its file is called."""
    return f"{method}-{bits}-{chosen}-seed{seed}"


def points(folder: Path, seed: int) -> list[Point]:
    """The points of one chain that are in a folder, in the order of tables. Raises ArtifactError where they are of
    different models or images."""
    found = {file: artifacts.load_json(file, KIND) for file in artifacts.listed(folder, f"*-seed{seed}.json")}
    if not found:
        raise ArtifactError(f"{folder}: no point of seed {seed}; name a --method and it is made")
    first, *others = found
    for file in others:
        if (here := _of(found[file])) != (there := _of(found[first])):
            raise ArtifactError(f"{file}: of {here}, but {first} is of {there}; delete one of them")
    made = [Point(each.content, each.manifest.notes["mse_of_images"]) for each in found.values()]
    return sorted(made, key=lambda point: (rows.order(point.row), CHOICES.index(point.row["chosen"])))


def _of(point: artifacts.JsonArtifact) -> str:
    """What points are compared on, in words."""
    row = point.content
    return f"{row['images']} images of {row['dataset']} (model {point.manifest.inputs['model'][:12]}…)"


def markdown(found: Sequence[Point]) -> str:
    """The tables with their notes."""
    made = [quality(found), best(found), gains(found)]
    return "\n\n".join("\n\n".join((sheet.markdown(each), *each.notes)) for each in made if each is not None) + "\n"


def quality(found: Sequence[Point]) -> Sheet:
    """PSNR, a line a method and way to choose, a column a size."""
    sizes, own = _sizes(found), _by_name(found)
    shares = [_share([point.row["share"] for point in found if point.row["bits"] == each]) for each in sizes]
    lines = [("Size, of float16", "", *shares)]
    for method in _methods(found):
        for chosen in CHOICES:
            mine = [own.get((method, each, chosen)) for each in sizes]
            if any(mine):
                beside = [own.get((method, each, UNIFORM)) if chosen == MIXED else None for each in sizes]
                pairs = [(point and point.row, other and other.row) for point, other in zip(mine, beside, strict=True)]
                cells = [MISSING if row is None else _decibels(row, other) for row, other in pairs]
                lines.append((rows.title(method), _WORDS[chosen], *cells))
    row = found[0].row
    notes = (
        f"{row['dataset']}: PSNR to full precision's images in dB, {row['images']} images, one chain (seed "
        f"{row['seed']}). Chosen: bits of each layer by its sensitivity, in as many bytes as uniform bits take; bold "
        f"where that is closer. {MISSING} was not made.",
    )
    headers = ("Method", "Weights", *(each.upper() for each in sizes))
    return Sheet("Quality against size", headers, tuple(lines), ("Method", "Weights"), notes)


def gains(found: Sequence[Point]) -> Sheet | None:
    """What choosing brings, where both are there: with the interval over images, and of how many it is closer."""
    own = _by_name(found)
    pairs = {
        (method, size): (own[method, size, MIXED], own[method, size, UNIFORM])
        for method, size, chosen in own
        if chosen == MIXED and (method, size, UNIFORM) in own
    }
    if not pairs:
        return None
    sizes = [size for size in _sizes(found) if any(each == size for _, each in pairs)]
    lines = [
        (rows.title(method), *(_gain(*pairs[method, size]) if (method, size) in pairs else MISSING for size in sizes))
        for method in _methods(found)
        if any(each == method for each, _ in pairs)
    ]
    notes = (
        f"Chosen bits minus uniform ones of as many bytes, in dB, with the {CONFIDENCE:.0%} interval over the images "
        "of one chain (another chain may say otherwise), and of how many images they are closer.",
    )
    headers = ("Method", *(f"size of {size.upper()}" for size in sizes))
    return Sheet("What choosing brings", headers, tuple(lines), ("Method",), notes)


def best(found: Sequence[Point]) -> Sheet:
    """The front: the points that none of as few bytes is as close as."""
    chosen = [found[index].row for index in front([(point.row["bytes"], -_psnr(point.row)) for point in found])]
    lines = tuple(
        (f"{row['share']:.3f}", rows.title(row["method"]), row["bits"].upper(), _WORDS[row["chosen"]], _decibels(row))
        for row in chosen
    )
    headers = ("Size, of float16", "Method", "Bits", "Weights", "PSNR (dB)")
    notes = ("The front: of as few bytes, no other point here is as close.",)
    return Sheet("The front", headers, lines, ("Method", "Bits", "Weights"), notes)


def chart(found: Sequence[Point]) -> Figure:
    """PSNR over size, a panel for each width of activations: a colour a method, uniform bits dashed, chosen ones solid;
    the front of a panel in grey."""
    widths = sorted({Bits.parse(point.row["bits"]).activation for point in found}, reverse=True)
    figure = drawing.figure(1.8 + 4.6 * len(widths), 4.4, layout="constrained")
    panels = figure.subplots(1, len(widths), sharey=True, squeeze=False)[0]
    styles = drawing.method_styles(_methods(found))
    for axes, width in zip(panels, widths, strict=True):
        mine = [point.row for point in found if Bits.parse(point.row["bits"]).activation == width]
        title = f"{found[0].row['dataset']}, activations of {width} bits"
        drawing.plain(axes, title, "size, of the float16 network", "PSNR (dB) ↑" if axes is panels[0] else "")
        _lines(axes, mine, styles)
    names = [Line2D([], [], label=rows.title(method), **style) for method, style in styles.items()]
    ways = [Line2D([], [], color=drawing.INK, label=_WORDS[way], linestyle=style) for way, style in _STYLES.items()]
    best = Line2D([], [], label="the front", **_BEST)
    figure.legend(handles=[*names, *ways, best], loc="outside right upper", frameon=False)
    return figure


def _lines(axes: Axes, mine: Sequence[Row], styles: Mapping[str, Mapping[str, Any]]) -> None:
    best = [mine[index] for index in front([(row["bytes"], -_psnr(row)) for row in mine])]
    axes.step([row["share"] for row in best], [_psnr(row) for row in best], where="post", **_BEST)
    for method, style in styles.items():
        for way, dashes in _STYLES.items():
            line = [row for row in mine if row["method"] == method and _is(row, way)]
            if all(row["chosen"] != way for row in line):
                continue  # ends alone, which are nobody's choice
            line.sort(key=lambda row: row["bytes"])
            (drawn,) = axes.plot([row["share"] for row in line], [_psnr(row) for row in line])
            drawn.set(**{**style, "linestyle": dashes, "markersize": 5, "linewidth": 1.2})
            if way == UNIFORM:
                drawn.set_markerfacecolor("white")


def _is(row: Row, way: str) -> bool:
    """Whether a row is on a line; where there is one choice it is on both."""
    return row["chosen"] == way or Bits.parse(row["bits"]).weight in _ENDS


def write(folder: Path, seed: int) -> list[Point]:
    """Join the points in a folder into front.csv, front.md and front.png beside them; returns them."""
    found = points(folder, seed)
    table = pd.DataFrame([[_written(point.row[key]) for key in COLUMNS] for point in found], columns=list(COLUMNS))
    artifacts.write_bytes(folder / "front.csv", table.to_csv(index=False, lineterminator="\n").encode())
    artifacts.write_bytes(folder / "front.md", markdown(found).encode())
    drawing.save(chart(found), folder / "front.png", small=True)
    return found


def _written(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{count}×{bits}" for bits, count in value.items())
    return "" if value is None else str(value)


def _by_name(found: Sequence[Point]) -> dict[tuple[str, str, str], Point]:
    return {(point.row["method"], point.row["bits"], point.row["chosen"]): point for point in found}


def _methods(found: Sequence[Point]) -> list[str]:
    """In the order of tables."""
    every = {point.row["method"] for point in found}
    return sorted(every, key=lambda method: rows.order({"method": method, "bits": "w8a8"}))


def _sizes(found: Sequence[Point]) -> list[str]:
    """The uniform bits whose bytes points have: from many to few, first those of many activation bits."""
    every = {Bits.parse(point.row["bits"]) for point in found}
    return [str(bits) for bits in sorted(every, key=lambda bits: (-bits.activation, -bits.weight))]


def _share(shares: Sequence[float]) -> str:
    """From the smallest to the largest."""
    least, most = f"{min(shares):.2f}", f"{max(shares):.2f}"
    return least if least == most else f"{least}–{most}"


def _psnr(row: Row) -> float:
    return math.inf if row["psnr"] is None else row["psnr"]


def _decibels(row: Row, beside: Row | None = None) -> str:
    written = f"{_psnr(row):.2f}"
    return f"**{written}**" if beside is not None and _psnr(row) > _psnr(beside) else written


def _gain(mixed: Point, uniform: Point) -> str:
    if not (any(mixed.errors) and any(uniform.errors)):
        return MISSING
    low, high = interval_of_images([mixed.errors], [uniform.errors])
    closer = sum(a < b for a, b in zip(mixed.errors, uniform.errors, strict=True)) / len(mixed.errors)
    return sheet.unbroken(f"{(low + high) / 2:+.2f} [{low:+.2f}, {high:+.2f}], {closer:.0%}")
