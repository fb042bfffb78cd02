"""Commands that show images and numbers side by side, and quality against time."""

from __future__ import annotations

from pathlib import Path

import click

from quest.stages import FILE


@click.command()
@click.argument("names", nargs=-1)
@click.option("--output", type=FILE, help="Write the page to this file, which can be sent, and end.")
@click.option("--port", type=click.IntRange(1, 65535), default=5001, show_default=True)
@click.option("--open", "browse", is_flag=True, help="Open the page in the browser.")
def show(names: tuple[str, ...], output: Path | None, port: int, browse: bool) -> None:
    """Show images and numbers of cells side by side, on loopback or as one HTML file.

    NAMES are datasets, or cells like digits/quest-w4a4; all that are in results/ by default.
    """
    from quest.artifacts import write_bytes
    from quest.report.show import page, results, serving

    groups = results.groups(names)
    if output is None:
        with serving.PageServer(port) as server:
            server.page = page.html(groups, page.LIMIT_HERE)
            server.show(browse)
    else:
        content = page.html(groups).encode()
        write_bytes(output, content)
        click.echo(f"{output}: {len(content) / 1e6:.1f} MB")


@click.command()
@click.argument("names", nargs=-1)
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=Path("times"), show_default=True)
def times(names: tuple[str, ...], output: Path) -> None:
    """Draw quality against the seconds that each cell took to make, a picture a dataset.

    NAMES are datasets, or cells like digits/quest-w4a4; all that are in results/ by default. Where jobs ran on several
    machines, each has panels of its own.
    """
    from quest.report import drawing
    from quest.report.show import results

    drawn, without = results.quality_against_time(results.groups(names))
    for name, figure in drawn.items():
        file = output / f"{name}.png"
        drawing.save(figure, file, small=True)
        click.echo(file)
    if without:
        click.echo(f"no times on record of {', '.join(without)}: a run of `snakemake` records them", err=True)
