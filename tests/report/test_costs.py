"""The table of stage times, from benchmark files as Snakemake writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from quest.report.costs import stages

HEADER = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"


def job(folder: Path, name: str, seconds: float) -> None:
    file = folder / f"{name}.tsv"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{HEADER}{seconds:.4f}\t0:00:01\t1\t1\t1\t1\t0\t0\t99\t1\n")


def test_a_row_a_stage_in_the_order_of_the_chain(tmp_path: Path) -> None:
    job(tmp_path, "sample/digits/fp-w32a32-seed0.0", 1.5)
    job(tmp_path, "sample/digits/fp-w32a32-seed0.1", 2.25)
    job(tmp_path, "calibrate/digits/seed0", 10.04)
    assert [line.split() for line in stages(tmp_path).splitlines()] == [
        ["stage", "jobs", "total", "s", "max", "s"],
        ["calibrate", "1", "10.0", "10.0"],
        ["sample", "2", "3.8", "2.2"],
    ]


def test_columns_are_aligned(tmp_path: Path) -> None:
    job(tmp_path, "reconstruct/digits/blocks-common-w4-seed0", 12345.6)
    job(tmp_path, "table/digits", 0.1)
    assert len({len(line) for line in stages(tmp_path).splitlines()}) == 1


def test_nothing_measured_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no benchmarks of any stage; `snakemake` writes them"):
        stages(tmp_path)


@pytest.mark.parametrize("content", ["", "seconds\n1.0\n", f"{HEADER}-\t0\n", HEADER])
def test_a_foreign_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "digits.tsv").write_text(content)
    with pytest.raises(ValueError, match=r"table/digits\.tsv: not a benchmark file of Snakemake"):
        stages(tmp_path)
