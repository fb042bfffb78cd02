"""The chart of each study, drawn from its rows alone; a function has the name of its study."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from quest import drawing, tables
from quest.analysis import Row
from quest.config import FULL_PRECISION
from quest.drawing import COLOURS, INK, MARKERS

_LINES = ("-", "--", ":", "-.")  # where markers would make an SVG heavy
_ROUNDING = {"nearest": "nearest", "blocks": "learned by block", "temporal": "learned, time embedding first"}
_SHOWN = 48  # pixels of a side of a sample, at most


def distributions(dataset: str, rows: Sequence[Row]) -> Figure:
    """Range, standard deviation and kurtosis of each layer's output, over the layers in network order."""
    figure, panels = _figure(f"{dataset}: spread of every layer's output, by version of the weights", 13, 4.2, 1, 3)
    layers = _distinct(rows, "layer")
    for axes, title, name, value in (
        (panels[0], "Range (largest of the steps)", "largest − smallest output", _range),
        (panels[1], "Standard deviation (mean over steps)", "standard deviation", _deviation),
        (panels[2], "Kurtosis (largest of the steps)", "kurtosis (normal distribution: 3)", _kurtosis),
    ):
        for index, version in enumerate(_distinct(rows, "weights")):
            values = [value(_where(rows, weights=version, layer=layer)) for layer in layers]
            axes.plot(range(len(layers)), values, _LINES[index], color=COLOURS[index], label=version)
        drawing.plain(axes, title, "layer, from input to output", name)
        _logarithmic(axes)
    return _with_legend(figure, panels[0])


def histograms(dataset: str, rows: Sequence[Row]) -> Figure:
    """A panel a layer, counts on a logarithmic axis."""
    layers = _distinct(rows, "layer")
    title = f"{dataset}: outputs of the {len(layers)} layers with the largest range, by version of the weights"
    figure, panels = _figure(title, 13, 4.2, 1, len(layers))
    for axes, layer in zip(panels, layers, strict=True):
        bins = _where(rows, layer=layer)
        middles = [(row["low"] + row["high"]) / 2 for row in bins]
        for index, version in enumerate(key for key in bins[0] if key not in ("layer", "low", "high")):
            counts = [row[version] or np.nan for row in bins]
            axes.plot(middles, counts, _LINES[index], color=COLOURS[index], linewidth=1, label=version)
        axes.set_yscale("log")
        drawing.plain(axes, layer, "output (no unit)", f"values in each of {len(bins)} bins")
    return _with_legend(figure, panels[0])


def sensitivity(dataset: str, rows: Sequence[Row]) -> Figure:
    """A line a family over activation bits."""
    images = rows[0]["images"]
    title = f"{dataset}: closeness to full precision when one family of layers has fewer activation bits"
    figure, (axes,) = _figure(title, 8.5, 4.8, 1, 1)
    bits = sorted(_distinct(rows, "activation_bits"), reverse=True)
    for index, family in enumerate(_distinct(rows, "family")):
        mine = _where(rows, family=family)
        label = f"{family} ({mine[0]['layers']} layers)"
        _line(axes, index, [(bits.index(row["activation_bits"]), row["psnr"], row["psnr_se"]) for row in mine], label)
    axes.set_xticks(range(len(bits)), [str(b) for b in bits])
    drawing.plain(
        axes,
        f"All else at 8 bits; {images} images, bars: standard error",
        "activation bits of the family",
        "PSNR to full precision (dB) ↑",
    )
    return _with_legend(figure, axes, columns=2)


def tokens(dataset: str, rows: Sequence[Row]) -> Figure:
    """A panel a filling; over the blocks, a line for each choice and count of tokens."""
    images, fillings, blocks = rows[0]["images"], _distinct(rows, "filling"), _distinct(rows, "block")
    title = (
        f"{dataset}: closeness to the intact sample when a few tokens of one block are overwritten ({images} images)"
    )
    figure, panels = _figure(title, 13, 5.4, 1, len(fillings), sharey=True)
    labels = [f"{block} ({_where(rows, block=block)[0]['block_tokens']})" for block in blocks]
    for axes, filling in zip(panels, fillings, strict=True):
        for index, (choice, count) in enumerate(dict.fromkeys((row["choice"], row["tokens"]) for row in rows)):
            mine = _where(rows, filling=filling, choice=choice, tokens=count)
            label = f"{count} token{'s' if count > 1 else ''}, {'largest |x|' if choice == 'largest' else choice}"
            _line(axes, index, [(blocks.index(row["block"]), row["psnr"], row["psnr_se"]) for row in mine], label)
        axes.set_xticks(range(len(blocks)), labels, rotation=35, ha="right", size=8)
        drawing.plain(
            axes, f"Overwritten by {filling}, at every step", "block (its tokens)", "PSNR to the intact sample (dB) ↑"
        )
    return _with_legend(figure, panels[0])


def samples(dataset: str, rows: Sequence[Row]) -> Figure:
    """A row a method, a column a bit-width; full precision stands above."""
    quantized = [row for row in rows if row["method"] != FULL_PRECISION]
    methods, bits = _distinct(quantized, "method"), _distinct(quantized, "bits")
    first = rows[0]
    count = len(_where(rows, method=first["method"], bits=first["bits"]))
    title = (
        f"{dataset}: images {first['image']}–{first['image'] + count - 1} of seed {first['seed']}, the same noise in "
        "every cell; below each, their mean PSNR to full precision (dB)"
    )
    figure, panels = _figure(
        title, 3.4 * max(len(bits), 3) + 1, 1.15 * (len(methods) + 1) + 0.6, len(methods) + 1, len(bits)
    )
    for row, method in enumerate((FULL_PRECISION, *methods)):
        for column, width in enumerate(bits):
            axes = panels[row * len(bits) + column]
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            chosen = {"method": method} if method == FULL_PRECISION else {"method": method, "bits": width}
            cell = _where(rows, **chosen)
            if column == 0:
                axes.set_ylabel(tables.title(method), rotation=0, ha="right", va="center", color=INK)
            if row == 1:
                axes.set_title(width.upper(), size=10, color=INK)
            if not cell or (row == 0 and column):
                continue
            axes.imshow(drawing.strip(_small(np.stack([r["_pixels"] for r in cell])), _SHOWN), interpolation="none")
            if row and all(r["psnr"] is not None for r in cell):
                axes.set_xlabel(f"{np.mean([r['psnr'] for r in cell]):.1f}", size=8, color=INK)
    return figure


def scales(dataset: str, rows: Sequence[Row]) -> Figure:
    """A panel a role; over the timesteps of each set, a line a method with the span of the sites."""
    roles, methods = _distinct(rows, "role"), _distinct(rows, "method")
    title = f"{dataset}: activation scales over the sampling steps, relative to their mean ({rows[0]['bits'].upper()})"
    columns = min(4, len(roles))
    height = -(-len(roles) // columns)
    figure, panels = _figure(title, 2.8 * columns, 1.9 * height + 0.8, height, columns, sharex=True)
    for axes, role in zip(panels, roles, strict=False):
        for index, method in enumerate(methods):
            mine = _where(rows, role=role, method=method)
            places = [(row["first_timestep"] + row["last_timestep"]) / 2 for row in mine]
            axes.fill_between(
                places,
                [row["min_ratio"] for row in mine],
                [row["max_ratio"] for row in mine],
                color=COLOURS[index],
                alpha=0.12,
                linewidth=0,
            )
            means = [row["mean_ratio"] for row in mine]
            axes.plot(places, means, _LINES[index % 4], color=COLOURS[index], label=tables.title(method))
        drawing.plain(axes, f"{role.replace('_', ' ')} ({_where(rows, role=role)[0]['sites']})")
        axes.axhline(1, color=INK, linewidth=0.8, linestyle=":")
    for axes in panels[len(roles) :]:
        axes.set_visible(False)
    panels[0].invert_xaxis()
    for axes in panels[-columns:]:
        axes.set_xlabel("timestep, noisiest first", color=INK)
    figure.supylabel("scale / its mean over sets; line: mean of the sites, band: all", size=10, color=INK)
    return _with_legend(figure, panels[0])


def errors(dataset: str, rows: Sequence[Row]) -> Figure:
    """Each layer's error over the layers, and the median layer's over the timesteps; a line a stage."""
    title = f"{dataset}: error of every layer's output against full precision after each stage"
    figure, (of_layers, of_steps) = _figure(title, 13, 4.6, 1, 2)
    layers, steps = _distinct(rows, "layer"), _distinct(rows, "timestep")
    for index, stage in enumerate(_distinct(rows, "stage")):
        style: dict[str, Any] = {"color": COLOURS[index], "linestyle": _LINES[index], "label": stage}
        mean = [np.mean([row["error"] for row in _where(rows, stage=stage, layer=layer)]) for layer in layers]
        of_layers.plot(range(len(layers)), mean, linewidth=1, **style)
        median = [np.median([row["error"] for row in _where(rows, stage=stage, timestep=step)]) for step in steps]
        of_steps.plot(steps, median, **style)
    for axes in (of_layers, of_steps):
        axes.set_yscale("log")
    of_steps.invert_xaxis()
    relative = "relative squared error ↓"
    drawing.plain(of_layers, "Mean over steps, by layer", "layer, from input to output", relative)
    drawing.plain(of_steps, "Median layer, by timestep", "timestep, noisiest first", relative)
    return _with_legend(figure, of_layers)


def offsets(dataset: str, rows: Sequence[Row]) -> Figure:
    """A panel a weight bit-width; over the timesteps, the whole error and its constant part for each rounding."""
    widths = _distinct(rows, "weight_bits")
    title = f"{dataset}: error of the predicted noise by rounded weights, and what of it is one constant a channel"
    figure, panels = _figure(title, 13, 4.6, 1, len(widths))
    for axes, bits in zip(panels, widths, strict=True):
        for index, rounding in enumerate(_distinct(rows, "rounding")):
            mine = _where(rows, weight_bits=bits, rounding=rounding)
            steps = [row["timestep"] for row in mine]
            for key, line, what in (("rms", "-", "whole"), ("constant_rms", ":", "constant")):
                _curve(axes, index, steps, [row[key] for row in mine], f"{_ROUNDING[rounding]}: {what}", line)
        axes.invert_xaxis()
        axes.set_ylim(bottom=0)
        drawing.plain(axes, f"{bits}-bit weights", "timestep, noisiest first", "root mean square (the noise has 1) ↓")
    return _with_legend(figure, panels[0], columns=3)


def expansion(dataset: str, rows: Sequence[Row]) -> Figure:
    """Both expansions at the output and inside over K; the first-order sum before and after finetuning."""
    title = f"{dataset}: loss change by quantization, and its expansions in K parts"
    figure, (at_output, inside, first) = _figure(title, 14, 5, 1, 3)
    nearest = _where(rows, weights="nearest")
    places, parts = _distinct(rows, "place"), _distinct(rows, "parts")
    bits = _distinct(nearest, "bits")
    for index, width in enumerate(bits):
        mine = _where(nearest, place=places[-1], bits=width)
        for key, line, what in (("expansion", "-", "eq. 11"), ("expansion_as_printed", ":", "eq. 10 as printed")):
            ratios = [row[key] / row["difference"] for row in mine]
            _curve(at_output, index, parts, ratios, f"{width.upper()}, {what}", line)
        mine = _where(nearest, place=places[0], bits=width)
        misses = [abs(row["expansion"] / row["difference"] - 1) for row in mine]
        _curve(inside, index, parts, misses, width.upper(), "-")
    networks = dict.fromkeys((row["weights"], row["bits"]) for row in rows)
    studied = [network for network in networks if network[1] == bits[-1]]
    for index, (version, width) in enumerate(studied):
        values = [_where(rows, weights=version, bits=width, place=p, parts=parts[-1])[0]["first"] for p in places]
        spots = [place + (index - (len(studied) - 1) / 2) * 0.25 for place in range(len(places))]
        first.bar(spots, values, 0.23, color=COLOURS[index], label=f"{version} {width.upper()}")
    first.set_xticks(range(len(places)), places, size=8)
    for axes in (at_output, inside):
        axes.set_xscale("log", base=2)
        axes.set_xticks(parts, [str(p) for p in parts])
        axes.set_yscale("log")
    drawing.plain(at_output, "At the output, where the loss is quadratic", "parts K", "expansion / true loss change")
    drawing.plain(inside, f"Inside, after {places[0]} (eq. 11)", "parts K", "|expansion / true loss change − 1|")
    drawing.plain(first, f"First-order sum, K = {parts[-1]}", "place of the perturbation", "Σ ε'g (loss, no unit) ↓")
    for axes in (at_output, inside, first):
        axes.legend(frameon=False, fontsize=7)
    return figure


def _figure(
    title: str, width: float, height: float, rows: int, columns: int, **shared: Any
) -> tuple[Figure, list[Axes]]:
    """A figure under ``title`` with its panels, row by row."""
    made = drawing.figure(width, height, layout="constrained")
    made.suptitle(title, x=0.01, ha="left", size=12, color=INK)
    return made, list(made.subplots(rows, columns, squeeze=False, **shared).flat)


def _with_legend(figure: Figure, axes: Axes, columns: int = 4) -> Figure:
    """Below the panels, for all of them."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)), frameon=False)
    return figure


def _line(axes: Axes, index: int, points: Iterable[tuple[float, float | None, float | None]], label: str) -> None:
    """(place, value, error) as a line with bars; what has no value is left out."""
    shown = [(place, value, error or 0.0) for place, value, error in points if value is not None]
    places, values, bars = zip(*shown, strict=True) if shown else ((), (), ())
    axes.errorbar(
        places,
        values,
        yerr=bars,
        color=COLOURS[index],
        marker=MARKERS[index],
        markersize=5,
        capsize=3,
        label=label,
    )


def _curve(axes: Axes, index: int, x: Sequence[int], y: Sequence[float], label: str, line: str) -> None:
    axes.plot(x, y, line, color=COLOURS[index], marker=MARKERS[index], markersize=4, label=label)


def _small(images: Any) -> Any:
    """Images (N, C, H, W) uint8 with at most `_SHOWN` pixels a side, by means over whole squares."""
    factor = -(-max(images.shape[2:]) // _SHOWN)
    side = [size // factor for size in images.shape[2:]]
    cut = images[:, :, : side[0] * factor, : side[1] * factor]
    means = cut.reshape(*images.shape[:2], side[0], factor, side[1], factor).mean((3, 5))
    return means.round().astype(np.uint8)


def _logarithmic(axes: Axes) -> None:
    """A logarithmic axis whose ticks are plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter())


def _range(rows: Sequence[Row]) -> float:
    return max(row["max"] - row["min"] for row in rows)


def _deviation(rows: Sequence[Row]) -> float:
    return float(np.mean([row["std"] for row in rows]))


def _kurtosis(rows: Sequence[Row]) -> float:
    return max(row["kurtosis"] for row in rows)


def _distinct(rows: Sequence[Row], key: str) -> list[Any]:
    """Values of ``key`` in the order of the rows."""
    return list(dict.fromkeys(row[key] for row in rows))


def _where(rows: Sequence[Row], **values: Any) -> list[Row]:
    return [row for row in rows if all(row[key] == value for key, value in values.items())]
