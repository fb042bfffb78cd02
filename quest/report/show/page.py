"""The page as one HTML text: tables that read without JavaScript, and the data that the script shows images from."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any, NamedTuple

from quest.artifacts import load_tensors
from quest.config.dataset import load_dataset
from quest.config.values import FULL_PRECISION, ConfigError
from quest.report import conditions, drawing, sheet, tables
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
    """The whole page, below ``limit`` bytes: as many images of each cell as there is room for.

    Raises ValueError where not even one fits, ArtifactError for a damaged file.
    """
    pictures = [_pictures(group) for group in groups]
    count, sprites = IMAGES, [_sprites(each, IMAGES) for each in pictures]
    while (size := sum(len(uri) for each in sprites for uri in each.values())) > limit - _TEXT:
        count = min(count - 1, int(0.97 * count * (limit - _TEXT) / size))
        if count < 1:
            raise ValueError(f"a page of {limit:,} bytes has no room for an image of each cell; name fewer cells")
        sprites = [_sprites(each, count) for each in pictures]
    if count < IMAGES:
        _log.info("the first %d images of each cell, so that the page stays below %.0f MB", count, limit / 1e6)
    data = [_data(group, shown, uris, count) for group, shown, uris in zip(groups, pictures, sprites, strict=True)]
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


def _sprites(pictures: _Pictures, count: int) -> dict[tuple[str, int], str]:
    return {key: images.sprite(pixels[:count]) for key, pixels in pictures.images.items()}


def _data(group: Group, pictures: _Pictures, sprites: dict[tuple[str, int], str], count: int) -> dict[str, Any]:
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
    if cell.seconds is not None:
        costs.append(f"{cell.seconds:,.0f} s")
    return [*(f"{name} {known[key]}" for key, name in _QUALITY.items() if key in known), " · ".join(costs)]


def _number(cell: Cell, column: Column) -> str:
    """A mean with its spread over seeds; where there is one seed, with the standard error of sampling, marked."""
    text, error = tables.written(cell.summary, column), cell.summary.get(f"{column.key}_se")
    if text == MISSING or error is None or "±" in text:
        return text
    return sheet.unbroken(f"{text} ± {error * column.scale:,.{column.digits}f}*")


def _title(group: Group) -> str:
    try:
        return load_dataset(group.dataset).title
    except ConfigError:
        return group.dataset


def _section(index: int, group: Group) -> str:
    """The numbers of a group as an HTML table."""
    columns = [column for column in COLUMNS if any(cell.summary.get(column.key) is not None for cell in group.cells)]
    heads = ["Method", "Bits", *(column.header for column in columns), "Quantized in (s)", "Seeds", "Quantizations"]
    rows = []
    for cell in group.cells:
        numbers = [_number(cell, column) for column in columns]
        seconds = MISSING if cell.seconds is None else f"{cell.seconds:,.0f}"
        seeds = ", ".join(map(str, sorted(cell.rows)))
        values = [cell.summary["bits"].upper(), *numbers, seconds, seeds, str(cell.summary["chains"] or MISSING)]
        label = escape(tables.named(cell.summary))
        cells = "".join(f"<td>{escape(value)}</td>" for value in values)
        rows.append(f'<tr data-cell="{escape(cell.name)}"><th scope="row">{label}</th>{cells}</tr>')
    head = "".join(f'<th scope="col">{escape(each)}</th>' for each in heads)
    apart = f'<p class="note">Measured apart: {escape(group.apart)}.</p>' if group.apart else ""
    (first, *_) = group.cells[0].rows.values()
    return f"""<section class="numbers" data-group="{index}">
<h2>Numbers: {escape(_title(group))}</h2>{apart}
<p class="note">{first["images"]:,} images a cell, features of {escape(first["extractor"])}.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Numbers of {escape(group.dataset)}"><table>
<thead><tr>{head}</tr></thead>
<tbody>
{chr(10).join(rows)}
</tbody></table></div></section>"""
