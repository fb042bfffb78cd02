"""The truth at the end, on one page: card.html, which needs nothing else, and README.md with the same."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from quest.artifacts import write_bytes
from quest.config.methods import title
from quest.deploy import export
from quest.deploy.card import Use, loading
from quest.deploy.packed.description import Description
from quest.deploy.quantized import QuantizedModel
from quest.own.choice import Wish, table
from quest.report.show.images import reduced

SAMPLES, PAGE, REPORT = "samples.png", "card.html", "report.json"
_PIXELS, _GAP = 96, 4  # side of a shown image at least, and the white between two
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em; color: #1a1a1a; }
img { max-width: 100%; } pre { background: #f4f4f4; padding: 0.8em; overflow-x: auto; white-space: pre-wrap; }
table { border-collapse: collapse; margin: 0.5em 0 1em; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25em 0.8em 0.25em 0; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
"""


class Words(NamedTuple):
    """What the model card of a packed folder is written from."""

    model: QuantizedModel
    description: Description
    account: Mapping[str, Any]
    use: Use


class Section(NamedTuple):
    """A part of the page: sentences, then a table, of which the first row is the header, then lines of code."""

    title: str
    sentences: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    code: str = ""


def write(
    folder: Path, report: Mapping[str, Any], full: Tensor, images: Tensor, words: Words, base_model: str | None
) -> None:
    """Put README.md, card.html, samples.png and report.json into a packed folder.

    full, images: (n, channels, H, W) uint8, of full precision and of the folder, from the same seeds.
    """
    picture = side_by_side(full.numpy(), images.numpy())
    sections = list(_sections(report))
    readme = export.described(
        folder,
        words.model,
        words.description,
        base_model,
        report["closeness"],
        report["model"],
        words.account,
        words.use,
    )
    shown = f"![The same seeds in full precision, above, and from this folder, below]({SAMPLES})"
    write_bytes(folder / SAMPLES, picture)
    write_bytes(folder / REPORT, (json.dumps(report, indent=1) + "\n").encode())
    write_bytes(folder / "README.md", "\n\n".join([readme.rstrip(), shown, *map(_markdown, sections), ""]).encode())
    write_bytes(folder / PAGE, _page(report, picture, loading(words.use), sections).encode())


def side_by_side(full: np.ndarray, images: np.ndarray) -> bytes:
    """Two rows of images (n, channels, H, W) uint8 as a PNG: full precision above, one column a seed. Of images with
    other than 1 or 3 channels, the first."""
    rows = []
    for row in (full, images):
        row = reduced(row if row.shape[1] in (1, 3) else row[:, :1])
        factor = max(1, -(-_PIXELS // min(row.shape[2:])))
        cells = row.transpose(0, 2, 3, 1).repeat(factor, 1).repeat(factor, 2).repeat(3 // row.shape[1], 3)
        cells = np.pad(cells, ((0, 0), (0, _GAP), (0, _GAP), (0, 0)), constant_values=255)
        rows.append(np.concatenate(list(cells), axis=1))
    file = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(file, "png", optimize=True)
    return file.getvalue()


def summary(report: Mapping[str, Any]) -> str:
    """What it cost, in a few lines for a terminal."""
    size, speed = report["size"], report["speed"]
    calls = "; ".join(f"{name} {value:.1f} ms" for name, value in speed["milliseconds"].items())
    lines = [
        f"{report['folder']}: {title(report['method'])} {report['bits'].upper()}; after `import quest`, diffusers' "
        "from_pretrained loads it",
        f"  quality  {_psnr(report['closeness'])}",
        f"  size     {size['network_mib']:.2f} MiB of network instead of {size['float32_mib']:.2f} in float32",
        *_chosen_in_short(report["mixed"]),
        f"  speed    a call of {speed['batch']}: {calls}",
        *(f"  cut      {cut}" for cut in report["cuts"]),
        f"  card     {report['folder']}/{PAGE}",
    ]
    return "\n".join(lines)


def _chosen_in_short(mixture: Mapping[str, Any] | None) -> Iterator[str]:
    if mixture is not None:
        counts = Counter(row["bits"] for row in mixture["rows"])
        layers = ", ".join(f"{counts[bits]} of {bits} bits" for bits in sorted(counts))
        yield f"  layers   {layers}; {mixture['share']:.1%} of float16; each of them stands in the card"


def _psnr(closeness: Mapping[str, Any]) -> str:
    count = f"{closeness['images']} images of the same seeds"
    if closeness["psnr"] is None:
        return f"equal to full precision, {count}"
    return (
        f"PSNR {closeness['psnr']:.2f} dB to full precision, {count}; the worst of them "
        f"{closeness['worst_psnr']:.2f} dB"
    )


def _sections(report: Mapping[str, Any]) -> Iterator[Section]:
    yield _numbers(report)
    yield _speed(report["speed"])
    if report["mixed"] is not None:
        yield _chosen(report["mixed"], report["closeness"])
    yield _rest(report)
    yield Section("What was cut", report["cuts"] or ["Nothing."])
    yield from _made(report)


def _numbers(report: Mapping[str, Any]) -> Section:
    size, closeness = report["size"], report["closeness"]
    rows = [
        ["", "full precision", "this folder"],
        ["denoiser (MiB)", f"{size['float32_mib']:.2f} in float32", f"{size['network_mib']:.2f}"],
        ["the whole folder (MiB)", "–", f"{size['folder_mib']:.2f}"],
        ["bits of a weight, of an activation", "32, 32", f"{size['weight_bits']:.2f}, {size['activation_bits']:.2f}"],
        ["PSNR to full precision (dB)", "–", _decibels(closeness["psnr"])],
        [f"the worst of {closeness['images']} images (dB)", "–", _decibels(closeness["worst_psnr"])],
    ]
    note = (
        "PSNR compares image by image, from the same seeds, so it counts every difference, also those that no one "
        "would call worse; of few images it is a rough number. It does not say how good the images are; `quest "
        "measure` does, against images of your own."
    )
    return Section("What it costs", [note], rows)


def _speed(speed: Mapping[str, Any]) -> Section:
    milliseconds = speed["milliseconds"]
    base = milliseconds["float32"]
    rows = [["denoiser", f"ms a call of {speed['batch']}", "times as fast as float32"]]
    rows += [[name, f"{value:.1f}", f"{base / value:.2f}"] for name, value in milliseconds.items()]
    why = [f"{count} modules: {what}" for what, count in speed["kernels"].items()]
    note = (
        f"Measured once on {speed['machine']}. Integer kernels are switched on by `quest.use_kernels(pipeline)`; here "
        f"they are, or why not: {'; '.join(why)}."
    )
    return Section("Speed on the machine that made it", [note], rows)


def _chosen(mixture: Mapping[str, Any], closeness: Mapping[str, Any]) -> Section:
    wish = Wish(**mixture["wish"])
    sentences = [
        f"Asked for: {wish}, weights of at most {mixture['most']}. Got: {mixture['bytes'] / 2**20:.2f} MiB of packed "
        f"network by the count of the search, {mixture['share']:.1%} of what it takes in float16."
    ]
    if wish.psnr is not None:
        reached = "it is" if closeness["psnr"] is None or closeness["psnr"] >= wish.psnr else "it is not"
        sentences.append(
            f"The choice had {mixture['psnr']:.2f} dB on held-out seeds, rounded to nearest, before anything was "
            f"learned. Whether this folder is as close as asked for on the seeds of this card: {reached}."
        )
    sentences.append(
        "Sensitivity is by how much samples move, as their mean squared error, when this layer alone has these bits."
    )
    return Section("Bits of each layer", sentences, table(mixture["rows"]))


def _rest(report: Mapping[str, Any]) -> Section:
    rows = [["not quantized", "count", "parameters", "why"]]
    for each in report["not_quantized"]:
        parameters = "" if each["parameters"] is None else f"{each['parameters']:,}"
        rows.append([each["what"], f"{each['count']:,}", parameters, each["why"]])
    return Section("What is not quantized", (), rows)


def _made(report: Mapping[str, Any]) -> Iterator[Section]:
    budget = report["budget_minutes"]
    estimated, took = sum(report["estimated_seconds"].values()), report["took_seconds"]
    sentences = [
        f"From {report['model']} (sha256 {report['model_sha256']}), a {report['network']['class']} of "
        f"{report['network']['parameters']:,} parameters, by {title(report['method'])} at {report['bits'].upper()}, "
        f"seed {report['seed']}, on {report['device']}.",
        f"Budget: {'none' if budget is None else f'{budget:g} minutes'}; estimated {estimated:,.0f} s.",
    ]
    if report["scheduler"] is not None:
        sentences.append(
            f"The scheduler of its own pipeline was {report['scheduler']}; it was calibrated along the states of "
            f"{report['calibrated_by']}, which is the folder's."
        )
    rows = [["step", "estimated s", "took s"]]
    for step, seconds in took.items():
        known = report["estimated_seconds"].get(step)
        rows.append([step, "–" if known is None else f"{known:,.0f}", f"{seconds:,.0f}"])
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    yield Section("How it was made", [*sentences, f"Versions: {versions}."], rows)
    yield Section("All settings", (), (), json.dumps(report["settings"], indent=1))


def _decibels(value: float | None) -> str:
    return "equal" if value is None else f"{value:.2f}"


def _markdown(section: Section) -> str:
    parts = [f"## {section.title}", *section.sentences]
    if section.rows:
        header, *rows = section.rows
        lines = [header, ["---"] * len(header), *rows]
        parts.append("\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines))
    if section.code:
        parts.append(f"```json\n{section.code}\n```")
    return "\n\n".join(parts)


def _page(report: Mapping[str, Any], picture: bytes, load: str, sections: Sequence[Section]) -> str:
    name = f"{title(report['method'])} {report['bits'].upper()} of {report['model']}"
    code = base64.b64encode(picture).decode()
    return "\n".join(
        [
            f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(name)}</title>',
            f"<style>{_STYLE}</style>\n<h1>{escape(name)}</h1>\n<p>{escape(_psnr(report['closeness']))}.</p>",
            f'<figure><img alt="samples" src="data:image/png;base64,{code}">',
            "<figcaption>A column is a seed: full precision above, this folder below.</figcaption></figure>",
            _html(Section("How to load it", (), (), load)),
            *map(_html, sections),
            "</html>\n",
        ]
    )


def _code(sentence: str) -> str:
    return re.sub(r"`(.+?)`", r"<code>\1</code>", escape(sentence))


def _html(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>", *(f"<p>{_code(each)}</p>" for each in section.sentences)]
    if section.rows:
        header, *rows = section.rows
        head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
        body = "\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        parts.append(f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>")
    if section.code:
        parts.append(f"<pre>{escape(section.code)}</pre>")
    return "\n".join(parts)
