"""Pictures of DATASET: the same noise under every cell, from its PREVIEWS, and metrics by bit-width, size and cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quest.artifacts import load_json, load_tensors
from quest.report import drawing, figures
from quest.stages import DATASET, file, files

PARAMETERS = (
    DATASET,
    files("previews"),
    file("table"),
    file("grid", "PNG of the same seeds under every cell."),
    file("comparison", "PNG of FID and closeness by bit-width."),
    file("tradeoff", "PNG of FID and closeness against size and cost."),
)


def run(dataset: str, previews: Sequence[Path], table: Path, grid: Path, comparison: Path, tradeoff: Path) -> None:
    """Write three PNG files. previews: of each cell, all on one seed. table: the table artifact of ``dataset``.

    Raises ValueError when the previews do not start at the same image of the same seed.
    """
    summary = load_json(table, "table").content["summary"]
    drawing.save(figures.sample_grid(dataset, [load_tensors(file, "preview") for file in previews], summary), grid)
    drawing.save(figures.comparison_chart(dataset, summary), comparison)
    drawing.save(figures.tradeoff_chart(dataset, summary), tradeoff)
