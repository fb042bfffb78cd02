"""Comparing cells and revisions: which files, which differences, how sure, and what does not compare."""

from __future__ import annotations

import math
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from result_files import row, write_metrics

from quest.report import compare
from quest.report.paired import Difference, difference

FID = {"quest": (40.0, 41.0, 43.0), "quest+tla-only": (42.0, 44.0, 44.0)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Metrics of two methods on three seeds, and of another on one."""
    (tmp_path / "digits").mkdir()
    for method, values in FID.items():
        for seed, fid in enumerate(values):
            write_metrics(tmp_path / "digits", row(method, seed=seed, fid=fid))
    write_metrics(tmp_path / "digits", row("nearest"))
    return tmp_path


def lines(text: str) -> dict[str, list[str]]:
    """Rows of a text table by metric, without it."""
    rows = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    return {cells[0]: cells[1:] for cells in rows if len(cells) > 1}


def test_on_the_same_seeds_differences_are_paired():
    first, second = (dict(enumerate(values)) for values in FID.values())
    found = difference(first, second)
    assert found.value == pytest.approx(2)
    assert found.error == pytest.approx(statistics.stdev([2, 3, 1]) / math.sqrt(3))


def test_on_other_seeds_variances_add_up():
    found = difference({0: 1.0, 1: 3.0}, {2: 4.0, 3: 4.0, 4: 7.0})
    assert found.value == pytest.approx(3)
    assert found.error == pytest.approx(math.sqrt(2 / 2 + 3 / 3))


def test_one_seed_has_no_error():
    assert difference({0: 1.0}, {0: 3.0, 1: 5.0}) == Difference(3, None)


def test_cells_by_name(folder: Path):
    text = compare.cells(["digits/quest-w4a4", "digits/quest+tla-only-w4a4"], folder)
    found = lines(text)
    assert re.match(r"metric +QuEST W4A4 +QuEST \(tla +QuEST \(tla\n", text), "long names are broken into lines"
    assert max(map(len, text.splitlines())) <= 100
    assert found["FID ↓"] == ["41.33 ± 1.53", "43.33 ± 1.15", "+2.00 ± 0.58"]
    assert found["Size (MiB)"] == ["0.50 ± 0.00", "0.50 ± 0.00", "+0.00 ± 0.00"]
    assert "QuEST W4A4: seeds 0, 1, 2, one whole chain each; QuEST (tla only) W4A4: seeds 0, 1, 2, one" in " ".join(
        text.split()
    )


def test_seeds_and_files(folder: Path):
    file = folder / "digits" / "quest+tla-only-w4a4-seed2.json"
    found = lines(compare.cells(["digits/quest-w4a4-seed1", str(file), "digits/nearest-w4a4"], folder))
    assert found["FID ↓"] == ["41.00", "44.00", "80.00", "+3.00", "+39.00"]


def test_what_one_lacks_has_no_difference(folder: Path):
    write_metrics(folder / "digits", row("fp", "w32a32"))
    found = lines(compare.cells(["digits/fp-w32a32", "digits/nearest-w4a4"], folder))
    assert found["PSNR to FP (dB) ↑"][0] == found["PSNR to FP (dB) ↑"][2] == "–"


def test_an_unknown_cell(folder: Path):
    """The three nearest are named."""
    write_metrics(folder / "digits", row("quest", "w8a8"))
    names = "digits/quest-w4a4, digits/quest-w8a8, digits/nearest-w4a4"
    with pytest.raises(ValueError, match=rf"no cell 'digits/quset-w4a4' among 4; the nearest are {names}$"):
        compare.cells(["digits/quset-w4a4", "digits/nearest-w4a4"], folder)


def test_no_metrics_at_all(tmp_path: Path):
    with pytest.raises(ValueError, match="no metrics; `dvc pull` fetches the shared ones, `snakemake` makes them"):
        compare.cells(["digits/quest-w4a4", "digits/nearest-w4a4"], tmp_path)


def test_few_metrics_unless_asked_and_many_cells_below_each_other(folder: Path):
    names = ["digits/quest-w4a4", "digits/nearest-w4a4", "digits/quest+tla-only-w4a4"]
    few, every = compare.cells(names, folder), compare.cells(names, folder, every=True)
    assert "FID∞" not in few
    assert "FID∞ ↓" in every
    assert max(map(len, few.splitlines())) <= 100
    write_metrics(folder / "digits", row("quest+" + "-".join(["very-long-name"] * 4), seed=0))
    many = compare.cells([*names, "digits/quest+" + "-".join(["very-long-name"] * 4) + "-w4a4"], folder)
    assert max(map(len, many.splitlines())) <= 100
    assert many.count("FID ↓") > 1


def test_for_programs(folder: Path):
    found = compare.cells_json(["digits/quest-w4a4", "digits/quest+tla-only-w4a4"], folder)
    assert found["cells"]["QuEST W4A4"]["fid"] == statistics.fmean(FID["quest"])
    value, error = found["differences"]["QuEST (tla only) W4A4"]["fid"]
    assert value == pytest.approx(2)
    assert error == pytest.approx(statistics.stdev([2, 3, 1]) / math.sqrt(3))


def test_one_cell_is_not_enough(folder: Path):
    with pytest.raises(ValueError, match="nothing to compare with QuEST W4A4; name two cells or more"):
        compare.cells(["digits/quest-w4a4-seed0", "digits/quest-w4a4-seed1"], folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"images": 500}, "images is 500, but 1000 in"), ({"dataset": "shapes"}, "measured on 'shapes'")],
)
def test_mixed_protocols_are_refused(folder: Path, changes: dict, message: str):
    write_metrics(folder / "digits", row("nearest", **changes))
    with pytest.raises(ValueError, match=message):
        compare.cells(["digits/quest-w4a4", "digits/nearest-w4a4"], folder)


def test_seeds_that_were_measured_otherwise_are_left_out(folder: Path):
    for seed in (0, 1):
        write_metrics(folder / "digits", row("ptqd", seed=seed, images=500 if seed else 1000, fid=50.0))
    text = compare.cells(["digits/quest-w4a4", "digits/ptqd-w4a4"], folder)
    assert lines(text)["FID ↓"] == ["41.33 ± 1.53", "50.00", "+8.67"]
    assert "Measured otherwise, so left out: PTQD W4A4, seed 1." in text
    plain = compare.cells_json(["digits/quest-w4a4", "digits/ptqd-w4a4"], folder)
    assert plain["cells"]["PTQD W4A4"]["fid"] == 50


def run(folder: Path, *command: str) -> None:
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    command = ("git", *identity, *command[1:]) if command[0] == "git" else (sys.executable, "-m", *command)
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


@pytest.mark.workflow
def test_two_revisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Results that DVC keeps, at a commit and as they are here."""
    monkeypatch.chdir(tmp_path)
    metrics = tmp_path / compare.METRICS / "digits"
    metrics.mkdir(parents=True)
    run(tmp_path, "git", "init", "--quiet")
    run(tmp_path, "dvc", "init", "--quiet")
    for fid, message in ((40.0, "first"), (38.0, "second")):
        for seed in (0, 1):
            write_metrics(metrics, row("quest", seed=seed, fid=fid + seed))
        run(tmp_path, "dvc", "add", "--quiet", str(compare.METRICS))
        run(tmp_path, "git", "add", "--all")
        run(tmp_path, "git", "commit", "--quiet", "--message", message)
    for seed in (0, 1):
        write_metrics(metrics, row("quest", seed=seed, fid=30.0 + 3 * seed))

    text = compare.revisions("HEAD~1", "HEAD", [])
    assert text.startswith("digits/quest-w4a4\n")
    assert lines(text)["FID ↓"] == ["40.50 ± 0.71", "38.50 ± 0.71", "-2.00 ± 0.00"]
    assert text.endswith("0 cells the same at HEAD~1 and HEAD, 1 cell changed.")
    assert compare.revisions("HEAD", "HEAD", []) == "1 cell the same at HEAD and HEAD, 0 cells changed."
    here = lines(compare.revisions("HEAD", compare.WORKSPACE, ["digits/quest-w4a4"]))
    assert here["metric"] == ["HEAD", "workspace", "workspace −"], "− HEAD is on the next line"
    plain = compare.revisions_json("HEAD", compare.WORKSPACE, [])
    assert plain["changed"]["digits/quest-w4a4"]["cells"]["workspace"]["fid"] == 31.5
    write_metrics(metrics, row("nearest"))
    assert "1 cell only at workspace: digits/nearest-w4a4" in compare.revisions("HEAD", compare.WORKSPACE, [])
    assert here["FID ↓"] == ["38.50 ± 0.71", "31.50 ± 2.12", "-7.00 ± 1.00"]

    write_metrics(metrics, row("quest", seed=1, images=500))
    text = compare.revisions("HEAD", compare.WORKSPACE, [])
    assert lines(text)["FID ↓"][:2] == ["38.50 ± 0.71", "30.00"]
    assert "Measured otherwise, so left out: workspace, seed 1." in text
    write_metrics(metrics, row("quest", seed=0, images=500))
    text = compare.revisions("HEAD", compare.WORKSPACE, [])
    assert re.search("digits/quest-w4a4: measured otherwise, so not compared: .* images is 500", text)
    assert "FID" not in text
    assert "HEAD:results/metrics/digits/quest-w4a4-seed0.json" in text, "and no folder that is gone by now"
    with pytest.raises(ValueError, match="--revision: 'nonsense' is no commit of this repository"):
        compare.revisions("nonsense", "HEAD", [])


def test_never_imports_torch():
    subprocess.run(
        [sys.executable, "-c", "import sys, quest.report.compare; sys.exit('torch' in sys.modules)"], check=True
    )
