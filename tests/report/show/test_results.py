"""What is found to be shown, and what is said where something is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from show_files import write_cell

from quest.artifacts import ArtifactError
from quest.report.show.results import groups, quality_against_time
from quest.report.times import Made


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
    with pytest.raises(
        ValueError, match=rf"no dataset or cell '{name}' among \d+; the nearest are {near}, [^,]+, [^,]+$"
    ):
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


def test_what_has_images_stands_before_what_has_more_cells(results: Path):
    for seed in range(2, 7):
        for method in ("fp", "nearest"):
            bits = "w32a32" if method == "fp" else "w4a4"
            write_cell(results, method, bits, seed=seed, inputs={"reference": "q" * 64})
    for method in ("ptqd", "tfmq-dm", "q-diffusion"):
        write_cell(results, method, "w8a8", inputs={"reference": "q" * 64})
    digits, apart, _ = groups((), results)
    assert sum(len(cell.rows) for cell in apart.cells) > sum(len(cell.rows) for cell in digits.cells)
    assert [len(cell.previews) for cell in digits.cells] == [1] * 6
    assert "reference is 'qqq" in apart.apart


def test_a_cell_says_what_its_chains_took_on_one_machine(results: Path):
    cell = "results/finetune/digits/quest-w4a4-seed{}.safetensors"
    for machines, expected in ((("A", "A"), Made(50, "A")), (("A", "B"), None)):
        lines = [
            {"file": cell.format(seed), "record": {"starttime": 5, "endtime": end}, "machine": machine}
            for seed, end, machine in zip((0, 1), (65, 45), machines, strict=True)
        ]
        (results / "results/finetune").mkdir(exist_ok=True)
        (results / "results/finetune/records.json").write_text("\n".join(map(json.dumps, lines)))
        made = {cell.name: cell.made for cell in groups((), results)[0].cells}
        assert (made["quest-w4a4"], made["nearest-w4a4"]) == (expected, None)


def test_pictures_of_time_are_of_datasets_that_have_times(results: Path):
    record = {"file": "results/finetune/digits/quest-w4a4-seed0.safetensors", "record": {"starttime": 5, "endtime": 65}}
    (results / "results/finetune").mkdir()
    (results / "results/finetune/records.json").write_text(json.dumps(record))
    drawn, without = quality_against_time(groups((), results))
    assert (list(drawn), without) == (["digits"], ["shapes-text"])


def test_a_damaged_file_is_named(results: Path):
    file = results / "results/metrics/digits/fp-w32a32-seed0.json"
    file.write_text(file.read_text().replace("1000", "1001"))
    with pytest.raises(ArtifactError, match=r"fp-w32a32-seed0.json: corrupt"):
        groups((), results)
