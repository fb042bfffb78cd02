"""What is found to be shown, and what is said where something is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from show_files import write_cell

from quest.artifacts import ArtifactError
from quest.report.show.results import groups


def names(root: Path, *wanted: str) -> dict[str, list[str]]:
    return {group.dataset: [cell.name for cell in group.cells] for group in groups(wanted, root)}


def test_cells_stand_in_table_order_with_their_seeds_and_images(results: Path):
    digits, text = groups((), results)
    assert [cell.name for cell in digits.cells][:3] == ["fp-w32a32", "nearest-w8a8", "quest-w8a8"]
    quest = digits.cells[-2]
    assert (quest.name, sorted(quest.rows), list(quest.previews)) == ("quest-w4a4", [0, 1], [0])
    assert quest.summary["fid"] == pytest.approx(40.5)
    assert quest.settings["sampler.steps"] == 20
    assert [cell.name for cell in text.cells] == ["fp-w32a32", "quest-w4a4"]


def test_datasets_and_cells_are_chosen_by_name_and_bring_full_precision(results: Path):
    assert set(names(results, "shapes-text")) == {"shapes-text"}
    assert names(results, "digits/quest-w4a4") == {"digits": ["fp-w32a32", "quest-w4a4"]}


@pytest.mark.parametrize(("name", "near"), [("digit", "digits"), ("digits/qest-w4a4", "digits/quest-w4a4")])
def test_an_unknown_name_gets_the_nearest(results: Path, name: str, near: str):
    with pytest.raises(ValueError, match=f"unknown '{name}' .did you mean '{near}'"):
        groups((name,), results)


def test_an_empty_store_says_what_to_pull(tmp_path: Path):
    with pytest.raises(ValueError, match="no metrics; `dvc pull results/metrics results/previews` brings shared ones"):
        groups((), tmp_path)


def test_results_of_another_protocol_stand_apart(results: Path):
    write_cell(results, "ptqd", "w8a8", inputs={"reference": "q" * 64})
    digits, apart, _ = groups((), results)
    assert "ptqd-w8a8" not in [cell.name for cell in digits.cells]
    assert [cell.name for cell in apart.cells] == ["ptqd-w8a8"]
    assert "reference is 'qqq" in apart.apart
    assert not digits.apart


def test_seconds_come_from_the_records_and_rather_from_the_last_run_here(results: Path):
    record = {"file": "results/finetune/digits/quest-w4a4-seed0.safetensors", "record": {"starttime": 5, "endtime": 65}}
    (results / "results/finetune").mkdir()
    (results / "results/finetune/records.json").write_text(json.dumps(record))

    def seconds() -> dict[str, float | None]:
        return {cell.name: cell.seconds for cell in groups((), results)[0].cells}

    assert (seconds()["quest-w4a4"], seconds()["nearest-w4a4"]) == (60, None)
    benchmark = results / "benchmarks/finetune/digits/quest-w4a4-seed0.tsv"
    benchmark.parent.mkdir(parents=True)
    benchmark.write_text("s\tmax_rss\n30.5\t100\n")
    assert seconds()["quest-w4a4"] == 30.5


def test_a_damaged_file_is_named(results: Path):
    file = results / "results/metrics/digits/fp-w32a32-seed0.json"
    file.write_text(file.read_text().replace("1000", "1001"))
    with pytest.raises(ArtifactError, match=r"fp-w32a32-seed0.json: corrupt"):
        groups((), results)
