"""Commands that show results."""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("cells", nargs=-1)
@click.option(
    "--revision",
    "revisions",
    multiple=True,
    help="A commit to compare with the files that are here; or, given twice, two commits. Then CELLS defaults to all.",
)
@click.option("--all", "every", is_flag=True, help="Every metric, not those of the tables' first columns alone.")
@click.option("--json", "as_json", is_flag=True, help="For programs: every metric, to the last digit.")
def compare(cells: tuple[str, ...], revisions: tuple[str, ...], every: bool, as_json: bool) -> None:
    """Print CELLS side by side, with differences from the first and their errors.

    A cell is a metrics file or its name, like digits/quest-w4a4 (all seeds) or digits/quest-w4a4-seed0. Of revisions,
    only what changed is printed, and how many cells did not.
    """
    from quest.report import compare

    if len(revisions) > 2:
        raise ValueError(f"--revision: given {len(revisions)} times; expected once or twice")
    if revisions:
        old, new = (*revisions, compare.WORKSPACE)[:2]
        given = compare.revisions_json(old, new, cells) if as_json else compare.revisions(old, new, cells, every=every)
    else:
        given = compare.cells_json(cells) if as_json else compare.cells(cells, every=every)
    click.echo(json.dumps(given, indent=1, ensure_ascii=False) if as_json else given)


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
@click.option("--browser/--no-browser", default=True, help="Open the page; default: yes.")
def ui(port: int, browser: bool) -> None:
    """Show results/ in MLflow, on this machine only: print the address of the runs table, and open it."""
    from quest.report.tracking import page

    page.serve(port, browser)
