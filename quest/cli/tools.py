"""Commands beside the pipeline: tuning, prompts, configuration, drawn shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from quest.stages import CELL, DEVICE, FILE, OUTPUT, PROTOCOL

_VARY = click.Option(
    ["--vary"], multiple=True, required=True, help="<key>=<value>,<value>,…; every combination is tried."
)


@click.command(params=[*PROTOCOL, *CELL, _VARY, DEVICE])
def tune(dataset: str, settings: str | None, method: str, bits: str, vary: tuple[str, ...], **cell: Any) -> None:
    """Finetune a cell with every combination of settings; print their losses on calibration data not seen."""
    from quest.config.values import Bits
    from quest.deploy import tuning
    from quest.stages import protocol

    varied = dict(map(tuning.parse, vary))
    done = tuning.trials(protocol(dataset, settings, method), method, Bits.parse(bits), vary=varied, **cell)
    click.echo(tuning.markdown(list(done)))


@click.command(params=[OUTPUT])
@click.argument("source", type=FILE)
@click.option("--count", type=click.IntRange(min=1), default=10_000, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def prompts(source: Path, output: Path, count: int, seed: int) -> None:
    """Choose prompts from SOURCE, a text file with one a line or COCO's captions (.json)."""
    from quest.sources.prompts import choose

    choose(source, output, count, seed)


@click.group()
def config() -> None:
    """Check and document the configuration."""


@config.command("check")
@click.option("--config", "file", type=FILE, default=Path("config/config.yaml"), show_default=True)
def config_check(file: Path) -> None:
    """Validate a run and list its cells."""
    from quest.config.run import load, require_models

    run = load(file)
    require_models(run, file.parent)
    for dataset in run.datasets:
        for cell in run.cells():
            click.echo(f"{dataset} {cell.method} {cell.bits} seeds {run.run.seeds}")


@config.command("docs")
@click.option("--output", type=FILE, default=Path("docs/config.md"), show_default=True)
def config_docs(output: Path) -> None:
    """Write the table of every key, its type, default and meaning."""
    from quest.artifacts import write_bytes
    from quest.config import reference

    write_bytes(output, reference.markdown().encode())


@click.group()
def shapes() -> None:
    """Pictures and prompts of the embedded datasets that a program draws."""


@shapes.command("prompts")
@click.option("--number", type=click.IntRange(min=1), default=1_000, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--output", type=FILE, default=Path("config/prompts/shapes.txt"), show_default=True)
def shapes_prompts(number: int, seed: int, output: Path) -> None:
    """Write captions drawn at random, one a line."""
    from quest.artifacts import write_bytes
    from quest.embedded.shapes import captions

    write_bytes(output, "".join(f"{caption}\n" for caption in captions(number, seed)).encode())


@shapes.command("picture")
@click.option("--number", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--output", type=FILE, default=Path("docs/images/shapes.png"), show_default=True)
def shapes_picture(number: int, output: Path) -> None:
    """Show the first pictures of the reference."""
    from quest.embedded.images import real_images
    from quest.report import pictures

    pictures.save(real_images("shapes", 32, number), output)
