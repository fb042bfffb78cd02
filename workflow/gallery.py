"""Everything in ``results/`` as pages and pictures for one report of all suites, made of what `dvc pull` brings.

`python -m workflow.gallery` writes them under ``report/``, with a caption each and the first page; nothing is computed.
``workflow/report/Snakefile`` puts them together.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from quest.artifacts import load_json, write_bytes
from quest.config.values import FULL_PRECISION
from quest.report import drawing, paper, published, sheet, tables, times
from quest.report.show import results
from quest.report.tracking import FIGURES, METRICS, PAPER, TABLES, results_in

FOLDER = Path("report")
FIRST_PAGE = FOLDER / "first-page.rst"
ANALYSIS = Path("results/analysis")
HEADLINE = "digits"  # the table of the default run
_LINE = 5_000  # characters
_HERE = Path(__file__).parent / "report"
_WORDS = {
    "samples": "The same noise under every cell",
    "comparison": "Quality by bit-width",
    "tradeoff": "Quality against size and cost",
}


class Item(NamedTuple):
    """A file of the report: what it is made of, and where the report shows it under which name."""

    source: Path
    file: Path
    category: str
    subcategory: str
    name: str

    @property
    def caption(self) -> Path:
        return self.file.with_suffix(".rst")


def items() -> list[Item]:
    """What is there: tables and pictures of suites, quality against time, tables of the papers in the papers' order,
    studies."""
    return [*_suites(), *_times(), *_papers(), *_studies()]


def write(found: Sequence[Item]) -> None:
    """Every page, picture and caption, and the first page. Raises ValueError where there is no table."""
    known = published.load()
    for item in found:
        if item.source == times.RECORDS[0]:
            pictures, _ = results.quality_against_time(results.groups((item.file.parent.name,)))
            drawing.save(next(iter(pictures.values())), item.file, small=True)
            write_bytes(item.caption, _words_of_picture(item).encode())
            continue
        if item.source.suffix == ".png":
            data, caption = item.source.read_bytes(), _words_of_picture(item)
        elif item.source.is_relative_to(PAPER):
            content = load_json(item.source, "paper").content
            data, caption = paper.to_html(content, known).encode(), (_HERE / "paper.rst").read_text()
        else:
            table = load_json(item.source, "table")
            content = table.content
            data = tables.to_html(content).encode()
            caption = f"{(_HERE / 'table.rst').read_text()}\n\n{how_it_was_made(content)}\n"
        write_bytes(item.file, data)
        write_bytes(item.caption, caption.encode())
    write_bytes(FIRST_PAGE, first_page().encode())


def first_page() -> str:
    """The table of the default run with its pictures, then how to read them, as reStructuredText."""
    files = {file.stem: file for file in results_in(TABLES, "*.json")}
    if not files:
        raise ValueError(f"{TABLES}: no table yet; `dvc pull` fetches the shared ones, `snakemake` makes them")
    name = HEADLINE if HEADLINE in files else next(iter(files))
    content = load_json(files[name], "table").content
    headline = tables.sheets(content)[0]
    pictures = [
        f".. image:: {_inline(file)}\n   :alt: {_title(file)}\n" for file in results_in(FIGURES, f"{name}/*.png")
    ]
    title = "Low-bit diffusion models"
    parts = [f"{title}\n{'=' * len(title)}", sheet.rst(headline), *pictures, (_HERE / "workflow.rst").read_text()]
    return "\n\n".join([*parts, how_it_was_made(content)]) + "\n"


def how_it_was_made(content: Mapping[str, Any]) -> str:
    """Settings, seeds and versions behind a table, in words."""
    rows = content["rows"]
    sources = [content["sources"][tables.row_key(row)] for row in rows]
    sampler = sources[0]["settings"].get("sampler") or {}
    steps = f"{sampler['kind'].upper()}, {sampler['steps']} steps, η = {sampler['eta']:g}" if sampler else ""
    guidance = sampler.get("guidance_scale", 1.0)
    guided = f", guidance {guidance:g}" if guidance != 1 else ""
    versions = {
        ", ".join(f"{name} {version}" for name, version in sorted(source["versions"].items())) for source in sources
    }
    methods = dict.fromkeys(tables.title(row["method"]) for row in rows if row["method"] != FULL_PRECISION)
    sampled = f"Images were sampled by {steps}{guided}. " if steps else ""
    return (
        f"**How it was made.** {', '.join(methods)} quantized the same full-precision model on the same calibration "
        f"data; {tables.seeding(rows)}. {sampled}Libraries: {'; or '.join(sorted(versions))}."
    )


def _suites() -> Iterator[Item]:
    for file in results_in(TABLES, "*.json"):
        dataset, _, suite = file.stem.partition(".")
        category, part, where = "1 Runs", f"{dataset}, {suite or 'default'}", FOLDER / "runs" / file.stem
        yield Item(file, where / "1-table.html", category, part, "Table")
        for picture in results_in(FIGURES, f"{file.stem}/*.png"):
            yield Item(picture, where / f"2-{picture.name}", category, part, _title(picture))


def _times() -> Iterator[Item]:
    """A picture of each dataset with a cell whose time is on record, drawn for the report alone."""
    for dataset in sorted({name.partition("/")[0] for name in times.made(Path())}):
        if (METRICS / dataset).is_dir():
            file = FOLDER / "times" / dataset / "times.png"
            yield Item(times.RECORDS[0], file, "1 Runs", f"{dataset}, all", "Quality against time")


def _papers() -> Iterator[Item]:
    if not published.PUBLISHED_FILE.exists():
        return
    order = list(published.load().tables.items())
    for dataset in sorted({file.parent.name for file in results_in(PAPER, "*/*.json")}):
        for number, (name, table) in enumerate(order, 1):
            file = PAPER / dataset / f"{name}.json"
            if file.exists():
                place = FOLDER / "paper" / dataset / f"{number:02}-{name}.html"
                yield Item(
                    file, place, "2 Tables of the papers, and ablations", dataset, f"{number:02} {table.heading}"
                )


def _studies() -> Iterator[Item]:
    for file in results_in(ANALYSIS, "*/*.png"):
        dataset = file.parent.name
        yield Item(file, FOLDER / "studies" / dataset / file.name, "3 Studies of the paper", dataset, file.stem)


def _title(picture: Path) -> str:
    return _WORDS.get(picture.stem, picture.stem.replace("-", " ").replace("_", " ").capitalize())


def _words_of_picture(item: Item) -> str:
    """The caption of a picture, its template filled in."""
    from jinja2 import Template

    stem = item.file.stem if item.source == times.RECORDS[0] else item.source.stem
    template = _HERE / ("analysis.rst" if item.source.is_relative_to(ANALYSIS) else f"{stem}.rst")
    if not template.exists():
        return f"{item.name} of {item.subcategory}."
    wildcards = {"dataset": item.subcategory.partition(",")[0], "study": item.source.stem}
    return Template(template.read_text()).render(snakemake={"wildcards": wildcards})


def _inline(file: Path) -> str:
    """A PNG as an address, in lines that docutils takes."""
    data = f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
    return "\n   ".join(data[start : start + _LINE] for start in range(0, len(data), _LINE))


if __name__ == "__main__":
    write(items())
