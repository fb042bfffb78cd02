"""A TABLE of the papers: the METRICS of its cells on DATASET beside what was published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pandas as pd

from quest.artifacts import Manifest, load_json, save_json, write_bytes
from quest.config.dataset import load_dataset
from quest.report import paper, published, tables
from quest.stages import DATASET, FILE, OUTPUT, file, files
from quest.stages.table import CONVERGENCE

BENCHMARKS = Path("benchmarks")
PARAMETERS = (
    click.Argument(["table"]),
    DATASET,
    files("metrics", required=False),
    click.Option(["--published", "published_file"], type=FILE, default=published.PUBLISHED_FILE, show_default=True),
    CONVERGENCE,
    OUTPUT,
    file("csv"),
    file("markdown"),
)


def run(
    table: str,
    dataset: str,
    metrics: Sequence[Path],
    published_file: Path,
    output: Path,
    csv: Path,
    markdown: Path,
    convergence: dict[str, Any] | None = None,
) -> None:
    """Write an artifact of kind "paper", as `quest.report.paper.build` makes it, and it as CSV and Markdown."""
    model = load_dataset(dataset).model
    absent = "not run" if model.exists() else f"not run: the weights of {dataset} are not here ({model})"
    artifacts = {file: load_json(file, "metrics") for file in metrics}
    known = published.load(published_file)
    content = paper.build(table, dataset, known, artifacts, absent, BENCHMARKS, convergence)
    inputs = {tables.row_key(artifact.content): artifact.manifest.sha256 for artifact in artifacts.values()}
    save_json(output, content, Manifest(kind="paper", inputs=dict(sorted(inputs.items()))))
    write_bytes(csv, pd.DataFrame(content["rows"], dtype=object).to_csv(index=False, lineterminator="\n").encode())
    write_bytes(markdown, paper.to_markdown(content, known).encode())
