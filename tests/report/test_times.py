"""Seconds of cells: whole chains, of jobs that ran, and never of two machines in one picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quest.artifacts import ArtifactError
from quest.report.times import Made, chart, made, mean

CALIBRATION = "results/calibration/digits/seed0.safetensors"
ROUNDING = "results/reconstruction/digits/blocks-common-w4-seed0.safetensors"
QUEST, NEAREST = (f"results/finetune/digits/{method}-w4a4-seed0.safetensors" for method in ("quest", "nearest"))
MODEL = "data/models/digits/denoiser.safetensors"


def write(root: Path, jobs: dict[str, tuple[float, list[str], str | None]]) -> None:
    """Records of jobs: seconds, inputs and machine by the file that each wrote."""
    for file, (seconds, inputs, machine) in jobs.items():
        record = {"starttime": 100.0, "endtime": 100.0 + seconds, "input": [MODEL, *inputs]}
        entry = {"file": file, "record": record} | ({"machine": machine} if machine else {})
        records = root.joinpath(*Path(file).parts[:2], "records.json")
        records.parent.mkdir(parents=True, exist_ok=True)
        with records.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(entry) + "\n")


def chain(rounding: float = 980.0, of_rounding: str | None = "A") -> dict[str, tuple[float, list[str], str | None]]:
    return {
        CALIBRATION: (35.0, [], "A"),
        ROUNDING: (rounding, [CALIBRATION], of_rounding),
        QUEST: (250.0, [CALIBRATION, ROUNDING], "A"),
        NEAREST: (25.0, [CALIBRATION], "A"),
    }


def test_a_cell_takes_what_its_whole_chain_takes(tmp_path: Path) -> None:
    write(tmp_path, chain())
    assert made(tmp_path) == {"digits/quest-w4a4-seed0": Made(1265, "A"), "digits/nearest-w4a4-seed0": Made(60, "A")}


@pytest.mark.parametrize(("rounding", "machine"), [(0.0, "A"), (-3.6, "A"), (980.0, "B"), (980.0, None)])
def test_no_time_where_a_job_was_taken_over_or_ran_elsewhere(tmp_path: Path, rounding: float, machine: str | None):
    write(tmp_path, chain(rounding, machine))
    assert list(made(tmp_path)) == ["digits/nearest-w4a4-seed0"]


def test_no_time_where_a_job_is_not_on_record(tmp_path: Path) -> None:
    write(tmp_path, {file: job for file, job in chain().items() if file != CALIBRATION})
    assert made(tmp_path) == {}


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    write(tmp_path, chain())
    (tmp_path / "results/finetune/records.json").write_text("{half")
    with pytest.raises(ArtifactError, match=r"results/finetune/records\.json: not Snakemake's records; `dvc pull"):
        made(tmp_path)


def test_chains_of_two_machines_have_no_mean() -> None:
    assert mean([Made(2, "A"), Made(4, "A")]) == Made(3, "A")
    assert mean([Made(2, "A"), Made(4, "B")]) is None
    assert mean([]) is None


def row(method: str, bits: str, fid: float) -> dict[str, Any]:
    return {"method": method, "bits": bits, "fid": fid, "fid_spread": None, "psnr": 40 - fid, "psnr_spread": 0.5}


def test_a_line_joins_what_nothing_faster_of_its_bits_is_as_good_as() -> None:
    cells = [
        (row("nearest", "w4a4", 9), Made(60, "A")),
        (row("ptqd", "w4a4", 10), Made(500, "A")),
        (row("quest", "w4a4", 4), Made(1000, "A")),
        (row("quest", "w8a8", 2), Made(900, "A")),
    ]
    figure = chart("digits", cells, row("fp", "w32a32", 1))
    fid, psnr = figure.axes
    lines = [np.asarray(line.get_xydata()).tolist() for line in fid.lines if line.get_alpha() == 0.5]
    assert lines == [[[60, 9], [1000, 4]], [[900, 2]]]
    hollow = [line.get_label() for line in fid.lines if line.get_markerfacecolor() == "white"]
    assert len(hollow) == 1
    assert [text.get_text() for text in fid.texts] == ["W4A4", "W8A8"]
    assert next(np.asarray(line.get_ydata())[0] for line in fid.lines if line.get_label() == "Full precision") == 1
    assert len(psnr.containers) == 4


def test_machines_have_panels_of_their_own() -> None:
    cells = [(row("nearest", "w4a4", 9), Made(60, "A")), (row("quest", "w4a4", 4), Made(10, "B"))]
    figure = chart("digits", cells)
    assert [len(axes.containers) for axes in figure.axes] == [1, 1, 1, 1]
    assert [axes.get_title(loc="left").split("\n")[0] for axes in figure.axes[:2]] == ["A", "B"]
    assert "cannot be compared" in figure.get_suptitle()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Nearest", "QuEST"]
    _, unknown, *_ = chart("digits", [cells[0], (cells[1][0], Made(10, None))]).axes
    assert unknown.get_title(loc="left") == "machine not recorded\nFID ↓"


def test_without_times_there_is_no_picture() -> None:
    with pytest.raises(ValueError, match="digits: no cell whose time was recorded; a run of `snakemake` records it"):
        chart("digits", [])
