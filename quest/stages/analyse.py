"""A STUDY of the paper on DATASET: its numbers (CSV) and a chart of them (PNG and SVG)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import torch

from quest import studies
from quest.artifacts import write_bytes
from quest.config.dataset import DatasetSettings
from quest.report import drawing
from quest.stages import DEVICE, PROTOCOL, SEED, file

_READ = ("model", "calibration", "reconstruction", "checkpoint", "preview")
PARAMETERS = (
    click.Argument(["study"], type=click.Choice(list(studies.STUDIES))),
    *PROTOCOL,
    SEED,
    *(
        file(name, "Where the study reads it; repeated where it reads many.", required=False, many=True)
        for name in _READ
    ),
    file("csv"),
    file("png"),
    file("svg"),
    DEVICE,
)


def run(
    study: str,
    dataset: str,
    settings: DatasetSettings,
    seed: int,
    csv: Path,
    png: Path,
    svg: Path,
    device: torch.device,
    **given: Sequence[Path],
) -> None:
    """Write three files, none before all of it is computed. given: what the study reads, by the names of `STUDIES`.

    Raises ValueError where a file is missing or one too many.
    """
    import pandas as pd

    from quest.studies.subject import Subject

    files = studies.files(study, given)
    rows, chart = studies.measure(study, dataset, Subject(settings, files, seed, device))
    table = pd.DataFrame([{k: v for k, v in row.items() if not k.startswith("_")} for row in rows])
    write_bytes(csv, table.to_csv(index=False, lineterminator="\n", float_format="%.4g").encode())
    drawing.save(chart, png, small=True)
    drawing.save(chart, svg)
