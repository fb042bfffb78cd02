"""The page as one HTML text: tables that read without JavaScript, and the data that the script shows images from."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any, NamedTuple

from quest.artifacts import load_tensors
from quest.config.dataset import load_dataset
from quest.config.values import FULL_PRECISION, ConfigError
from quest.report import conditions, drawing, tables
from quest.report.show import images
from quest.report.show.results import Cell, Group
from quest.report.tables import COLUMNS, MISSING, Column

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LIMIT = 10_000_000  # bytes of a page, so that it can be sent by mail
LIMIT_HERE = 100_000_000  # of one that does not leave this machine
IMAGES = 64  # of a cell, at most
_TEXT = 1_000_000  # bytes that are left for all but images
_QUALITY = {"fid": "FID", "clip": "CLIP", "psnr": "PSNR"}
_COSTS = ("weight_mib", "gbops")
_UNITS = {"fid": "", "clip": "", "psnr": " dB", "weight_mib": " MiB", "gbops": " GBOPs"}
_log = logging.getLogger(__name__)


class _Pictures(NamedTuple):
    """The images of a group by cell and seed, (N, C, H, W) uint8 each, and the condition that they were drawn for."""

    images: dict[tuple[str, int], NDArray[np.uint8]]
    condition: dict[str, Any] | None


def html(groups: Sequence[Group], limit: int = LIMIT) -> str:
    """The whole page, below ``limit`` bytes: the images as they are, else compressed, else also fewer of each cell.

    Raises ValueError where not even one fits, ArtifactError for a damaged file.
    """
    pictures = [_pictures(group) for group in groups]
    sprites, count, exact = _carried(pictures, limit)
    data = [
        _data(group, shown, uris, count, exact) for group, shown, uris in zip(groups, pictures, sprites, strict=True)
    ]
    assets = files("quest.report.show") / "assets"
    return Template(assets.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        style=assets.joinpath("page.css").read_text(encoding="utf-8"),
        script=assets.joinpath("page.js").read_text(encoding="utf-8"),
        # No "</script>" may stand in the data, whatever a prompt says.
        data=json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
        tables="\n".join(_section(index, group) for index, group in enumerate(groups)),
    )


def _pictures(group: Group) -> _Pictures:
    """The images of each cell and seed that are here and are of the same samples as its numbers."""
    found, condition = {}, None
    for cell in group.cells:
        for seed, file in cell.previews.items():
            preview = load_tensors(file, "preview")
            if preview.manifest.inputs["samples"] != cell.samples[seed]:
                _log.warning("%s: of other samples than the numbers of its cell; left out", file)
                continue
            found[cell.name, seed] = images.reduced(preview.tensors["images"][:IMAGES].numpy())
            condition = preview.manifest.settings.get("condition")
    return _Pictures(found, condition)


def _carried(pictures: Sequence[_Pictures], limit: int) -> tuple[list[dict[tuple[str, int], str]], int, bool]:
    """The sprites of each group, how many images of a cell they have, and whether those are as they were."""
    room = limit - _TEXT
    raw = sum(pixels.nbytes for each in pictures for pixels in each.images.values())
    exact = raw < 4 * room  # beyond, trying is not worth its minutes
    count, sprites = IMAGES, [_sprites(each, IMAGES, exact) for each in pictures]
    while (size := sum(len(uri) for each in sprites for uri in each.values())) > room:
        if not exact:
            count = min(count - 1, int(0.97 * count * room / size))
        if count < 1:
            raise ValueError(f"a page of {limit:,} bytes has no room for an image of each cell; name fewer cells")
        exact, sprites = False, [_sprites(each, count, False) for each in pictures]
    if not exact:
        few = "" if count == IMAGES else f", and the first {count} images of each cell"
        _log.info("compressed images%s, so that the page stays below %.0f MB", few, limit / 1e6)
    return sprites, count, exact


def _sprites(pictures: _Pictures, count: int, exact: bool) -> dict[tuple[str, int], str]:
    return {key: images.sprite(pixels[:count], exact) for key, pixels in pictures.images.items()}


def _closeness(cell: Cell, group: Group, pictures: _Pictures) -> dict[int, list[float | None]]:
    """PSNR of a cell's images to full precision's, by seed: of the images themselves, however the page carries them."""
    full = next((each.name for each in group.cells if each.summary["method"] == FULL_PRECISION), "")
    shown = {seed: pixels for (name, seed), pixels in pictures.images.items() if name == cell.name != full}
    targets = {seed: pictures.images[full, seed] for seed in shown if (full, seed) in pictures.images}
    return {seed: images.psnr(shown[seed], target) for seed, target in targets.items()}


def _data(
    group: Group, pictures: _Pictures, sprites: dict[tuple[str, int], str], count: int, exact: bool
) -> dict[str, Any]:
    """What the script needs of a group."""
    shapes = [pixels[:count].shape for pixels in pictures.images.values()]
    number, _, height, width = map(min, zip(*shapes, strict=True)) if shapes else (0, 0, 0, 0)
    return {
        "dataset": group.dataset,
        "title": _title(group),
        "apart": group.apart,
        "height": height,
        "width": width,
        "images": number,
        "exact": exact,
        "conditions": conditions.words(group.dataset, pictures.condition, range(number)),
        "seeds": sorted({seed for cell in group.cells for seed in cell.rows}),
        "cells": [
            {
                "name": cell.name,
                "label": tables.label(cell.summary["method"], cell.summary["bits"], tables.backend(cell.summary)),
                "bits": cell.summary["bits"].upper(),
                "full": cell.summary["method"] == FULL_PRECISION,
                "variant": "+" in cell.summary["method"],
                "colour": drawing.method_colour(cell.summary["method"]),
                "numbers": _beside(cell),
                "settings": {key: json.dumps(value, ensure_ascii=False) for key, value in cell.settings.items()},
                "psnr": _closeness(cell, group, pictures),
                "sprites": {seed: uri for (name, seed), uri in sprites.items() if name == cell.name},
            }
            for cell in group.cells
        ],
    }


def _beside(cell: Cell) -> list[str]:
    """The lines beside a row of images: quality, then what it costs."""
    columns = {column.key: column for column in COLUMNS}
    written = {key: _number(cell, columns[key]) for key in _UNITS if key in columns and key in cell.summary}
    known = {key: text + _UNITS[key] for key, text in written.items() if text != MISSING}
    costs = [known[key] for key in _COSTS if key in known]
    if cell.made is not None:
        costs.append(f"{cell.made.seconds:,.0f} s")
    return [*(f"{name} {known[key]}" for key, name in _QUALITY.items() if key in known), " · ".join(costs)]


def _number(cell: Cell, column: Column) -> str:
    """A mean with its spread over seeds; where there is one seed, with the standard error of sampling, marked."""
    text, error = tables.written(cell.summary, column), cell.summary.get(f"{column.key}_se")
    if text == MISSING or error is None or "±" in text:
        return text
    return f"{tables.number(column, cell.summary[column.key], error)}*"


def _title(group: Group) -> str:
    try:
        return load_dataset(group.dataset).title
    except ConfigError:
        return group.dataset


def _section(index: int, group: Group) -> str:
    """The numbers of a group as an HTML table."""
    columns = [column for column in COLUMNS if any(cell.summary.get(column.key) is not None for cell in group.cells)]
    machines = {cell.made.machine for cell in group.cells if cell.made is not None}
    where = ["Made on"] if len(machines) > 1 else []
    heads = ["Method", "Bits", *(column.header for column in columns), "Made in (s)", *where, "Seeds", "Quantizations"]
    rows = []
    for cell in group.cells:
        numbers = [_number(cell, column) for column in columns]
        seconds = MISSING if cell.made is None else f"{cell.made.seconds:,.0f}"
        machine = MISSING if cell.made is None else cell.made.machine or "not recorded"
        where = [machine] if len(machines) > 1 else []
        seeds = ", ".join(map(str, sorted(cell.rows)))
        chains = str(cell.summary["chains"] or MISSING)
        values = [cell.summary["bits"].upper(), *numbers, seconds, *where, seeds, chains]
        label = escape(tables.named(cell.summary))
        cells = "".join(f"<td>{escape(value)}</td>" for value in values)
        rows.append(f'<tr data-cell="{escape(cell.name)}"><th scope="row">{label}</th>{cells}</tr>')
    head = "".join(f'<th scope="col">{escape(each)}</th>' for each in heads)
    apart = f'<p class="note">Measured apart: {escape(group.apart)}.</p>' if group.apart else ""
    (first, *_) = group.cells[0].rows.values()
    return f"""<section class="numbers" data-group="{index}">
<h2>Numbers: {escape(_title(group))}</h2>{apart}
<p class="note">{first["images"]:,} images a cell, features of {escape(first["extractor"])}.{_times(machines)}</p>
<div class="scroll" tabindex="0" role="region" aria-label="Numbers of {escape(group.dataset)}"><table>
<thead><tr>{head}</tr></thead>
<tbody>
{chr(10).join(rows)}
</tbody></table></div></section>"""


def _times(machines: Collection[str | None]) -> str:
    """Where the seconds of a table were measured, as HTML."""
    if not machines:
        return " What the cells took to make was not recorded."
    if len(machines) > 1:
        return " Seconds of different machines cannot be compared."
    (machine,) = machines
    return f" Made on {escape(machine)}." if machine else " Seconds are of one run, whose machine was not recorded."
