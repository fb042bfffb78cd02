"""Commands that show results."""

from __future__ import annotations

import click


@click.command()
@click.argument("cells", nargs=-1)
@click.option(
    "--revision",
    "revisions",
    multiple=True,
    help="A commit to compare with the files that are here; or, given twice, two commits. Then CELLS defaults to all.",
)
def compare(cells: tuple[str, ...], revisions: tuple[str, ...]) -> None:
    """Print CELLS side by side, with differences from the first and their errors.

    A cell is a metrics file or its name, like digits/quest-w4a4 (all seeds) or digits/quest-w4a4-seed0.
    """
    from quest.report import compare

    if len(revisions) > 2:
        raise ValueError(f"--revision: given {len(revisions)} times; expected once or twice")
    if revisions:
        old, new = (*revisions, compare.WORKSPACE)[:2]
        click.echo(compare.revisions(old, new, cells))
    else:
        click.echo(compare.cells(cells))


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
@click.option("--browser/--no-browser", default=True, help="Open the page; default: yes.")
def ui(port: int, browser: bool) -> None:
    """Show results/ in MLflow, on this machine only: print the address of the runs table, and open it."""
    from quest.report.tracking import page

    page.serve(port, browser)
