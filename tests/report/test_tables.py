"""Tables: order, means and spreads, what is missing, and rows that cannot stand in one table."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from result_files import CELLS, row, write_all, write_metrics

from quest.artifacts import load_json
from quest.report import tables
from quest.stages import score, table, write_table


def make(folder: Path, metrics: list[Path]) -> tuple[dict[str, Any], str, str]:
    """Content, CSV and Markdown of the table of ``metrics``."""
    table.run("digits", metrics, folder / "t.json")
    write_table.run(folder / "t.json", folder / "t.csv", folder / "t.md")
    content = load_json(folder / "t.json", "table").content
    return content, (folder / "t.csv").read_text(), (folder / "t.md").read_text()


def cells(markdown: str, number: int = 0) -> list[list[str]]:
    """One of the tables in ``markdown`` as text by row and column, header first."""
    found = [part for part in markdown.split("\n\n") if part.startswith("|")]
    lines = found[number].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("|:")]


def test_full_precision_comes_first_then_many_bits_to_few(tmp_path: Path):
    content, _, markdown = make(tmp_path, write_all(tmp_path))
    order = [("fp", "w32a32"), ("nearest", "w8a8"), ("quest", "w8a8"), ("nearest", "w4a4"), ("quest", "w4a4")]
    assert [(r["method"], r["bits"]) for r in content["rows"]] == order
    assert [(r["method"], r["bits"]) for r in content["summary"]] == order
    assert [line[:2] for line in cells(markdown)[1:]] == [
        ["Full precision", "W32A32"],
        ["Nearest", "W8A8"],
        ["QuEST", "W8A8"],
        ["Nearest", "W4A4"],
        ["QuEST", "W4A4"],
    ]


def test_order_of_uneven_bits_and_of_unknown_methods():
    given = [("new", "w4a4"), ("quest", "w4a4"), ("quest", "w4a8"), ("quest", "w8a8"), ("quest", "w8a4")]
    keys = [tables.order({"method": method, "bits": bits}) for method, bits in given]
    assert [given[i] for i in sorted(range(5), key=keys.__getitem__)] == [
        ("quest", "w8a8"),
        ("quest", "w8a4"),
        ("quest", "w4a8"),
        ("quest", "w4a4"),
        ("new", "w4a4"),
    ]


def test_variants_stand_beside_their_method():
    methods = ["quest+1-set", "tfmq-dm", "quest", "nearest+per-token", "nearest"]
    rows = [{"method": method, "bits": "w4a4"} for method in methods]
    assert [r["method"] for r in sorted(rows, key=tables.order)] == [
        *("nearest", "nearest+per-token", "quest", "quest+1-set", "tfmq-dm"),
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((24.1, 16.9, 24.2), "Seed 1 of QuEST W4A4 stands apart: 16.9 dB, the others 24.1 and 24.2."),
        ((24.0, 22.0, 30.5), "Seed 2 of QuEST W4A4 stands apart: 30.5 dB, the others 22.0 and 24.0."),
        ((24.0, 20.0, 30.5), None),  # others as far from each other: it varies
        ((24.0, 21.1, 24.0), None),
        ((24.0, 16.0), None),  # of two, which?
        ((24.0, None, 16.0), None),
    ],
)
def test_a_chain_that_stands_apart_is_said(given: tuple[float | None, ...], said: str | None) -> None:
    rows = [row("quest", "w4a4", seed=seed, psnr=psnr) for seed, psnr in enumerate(given)]
    rows += [row("nearest", "w4a4", seed=seed, psnr=10.0) for seed in range(3)]
    assert tables.apart(rows) == ([said] if said else [])


def test_more_levels_than_the_bits_hold_are_named(tmp_path: Path):
    rows = [row("quest", "w4a4", activation_levels=16), row("quest+33-levels", "w4a4", activation_levels=33)]
    _, _, markdown = make(tmp_path, [write_metrics(tmp_path, each) for each in rows])
    assert "QuEST (33 levels) W4A4 has 33 activation levels, not 16." in markdown
    assert "QuEST W4A4 has" not in markdown


def test_rows_are_the_metrics_as_measured(tmp_path: Path):
    content, _, _ = make(tmp_path, write_all(tmp_path, seeds=2))
    assert len(content["rows"]) == 2 * len(CELLS)
    assert row("quest", "w4a4", 1) in content["rows"]
    source = content["sources"]["digits/quest-w4a4-seed1"]
    assert source["settings"]["methods"] == {"quest": {"sets": 20}}
    assert source["inputs"]["model"] == "m" * 64


def test_the_manifest_names_every_metrics_file(tmp_path: Path):
    files = write_all(tmp_path)
    make(tmp_path, files)
    inputs = load_json(tmp_path / "t.json", "table").manifest.inputs
    assert inputs == {f"digits/{file.stem}": load_json(file, "metrics").manifest.sha256 for file in files}


def test_mean_and_sample_deviation_over_seeds(tmp_path: Path):
    content, _, markdown = make(tmp_path, write_all(tmp_path, seeds=3))
    summary = content["summary"][-1]
    assert (summary["method"], summary["seeds"]) == ("quest", 3)
    assert summary["fid"] == pytest.approx(41)
    assert summary["fid_spread"] == pytest.approx(1)  # of 40, 41, 42 with n − 1
    assert summary["psnr_spread"] == pytest.approx(statistics.stdev([40 - f / 4 for f in (40, 41, 42)]))
    assert summary["weight_mib"] == 0.5
    assert summary["layers"] == 40
    assert "41.00\u00a0±\u00a01.00" in markdown, "one word, which no column breaks"
    assert "seeds 0, 1, 2, one whole chain each. Mean ± standard deviation over seeds." in markdown


def test_one_seed_has_no_spread(tmp_path: Path):
    content, _, markdown = make(tmp_path, write_all(tmp_path))
    assert all(value is None for r in content["summary"] for name, value in r.items() if name.endswith("_spread"))
    assert "±" not in markdown
    assert "seed 0." in markdown


def test_seeds_that_share_a_quantization_are_said_to(tmp_path: Path):
    rows = [row("fp", "w32a32", seed) for seed in range(3)] + [row(seed=seed, chain_seed=0) for seed in range(3)]
    content, text, markdown = make(tmp_path, [write_metrics(tmp_path, each) for each in rows])
    assert [(r["seeds"], r["chains"]) for r in content["summary"]] == [(3, 0), (3, 1)]
    assert "chain_seed" not in content["summary"][1]
    assert [line["chain_seed"] for line in csv.DictReader(io.StringIO(text))] == ["", "", "", "0", "0", "0"]
    alone = "one quantization (of seed 0), sampling seeds 0, 1, 2, so the spread is that of sampling alone."
    assert f"features of digits-classifier, {alone} Mean ± standard deviation over seeds." in markdown


@pytest.mark.parametrize(
    ("chains", "expected"),
    [
        ({"quest": {3: 3}}, "seed 3"),
        ({"quest": {1: 0}}, "one quantization (of seed 0), sampling seed 1"),
        ({"fp": {0: None, 1: None}}, "seeds 0, 1"),
        (
            {"quest": {0: 0, 1: 1, 2: 0}},
            "2 quantizations (of seeds 0, 1), sampling seeds 0, 1, 2, so seeds that share one differ in sampling alone",
        ),
        (
            {"fp": {0: None, 1: None}, "quest": {0: 0, 1: 1}, "nearest": {0: 0, 1: 0}, "ptqd": {0: 0, 1: 0}},
            "QuEST W4A4: seeds 0, 1, one whole chain each; Nearest W4A4, PTQD W4A4: one quantization (of seed 0), "
            "sampling seeds 0, 1, so the spread is that of sampling alone",
        ),
        ({"fp": {0: None, 1: None}, "quest": {0: 0}}, "Full precision: seeds 0, 1; QuEST W4A4: seed 0"),
    ],
)
def test_seeds_in_words(chains: dict[str, dict[int, int | None]], expected: str):
    rows = [
        row(method, "w32a32" if method == "fp" else "w4a4", seed, chain_seed=quantized)
        for method, seeds in chains.items()
        for seed, quantized in seeds.items()
    ]
    assert tables.seeding(rows) == expected


def test_the_deviation_over_splits_is_not_summed_up(tmp_path: Path):
    content, _, _ = make(tmp_path, write_all(tmp_path, seeds=2))
    assert "is_spread" in content["summary"][0]
    assert "is_std" not in content["summary"][0]


def test_a_missing_metric_is_missing_and_not_zero(tmp_path: Path):
    files = [write_metrics(tmp_path, row("fp", "w32a32")), write_metrics(tmp_path, row(recall=None))]
    content, text, markdown = make(tmp_path, files)
    assert content["summary"][1]["recall"] is None
    header, _, quest = cells(markdown)
    assert quest[header.index("Recall ↑")] == "–"
    assert list(csv.DictReader(io.StringIO(text)))[1]["recall"] == ""


def test_a_metric_that_one_seed_lacks_has_no_mean(tmp_path: Path):
    files = [write_metrics(tmp_path, row(seed=0)), write_metrics(tmp_path, row(seed=1, psnr=None))]
    content, _, _ = make(tmp_path, files)
    assert content["summary"][0]["psnr"] is None
    assert content["summary"][0]["psnr_spread"] is None


def test_full_precision_is_not_compared_with_itself(tmp_path: Path):
    _, _, markdown = make(tmp_path, write_all(tmp_path))
    for number, column in enumerate(("PSNR to FP (dB) ↑", "MSE to FP (10⁻³) ↓")):
        header, full_precision, *_ = cells(markdown, number)
        assert full_precision[header.index(column)] == "–"


@pytest.mark.parametrize(
    ("value", "spread", "expected"),
    [
        (0.881, 0.15, "0.88 ± 0.15"),
        (99.994, 1.0, "99.99 ± 1.00"),
        (205.17, 37.02, "205.2 ± 37.0"),
        (3726.68, 245.61, "3,727 ± 246"),
        (917.15, 1244.44, "917 ± 1,244"),
        (0.0, 0.0, "0.00 ± 0.00"),
    ],
)
def test_four_digits_of_a_number_do(value: float, spread: float, expected: str):
    summary = {"method": "quest", "fid": value, "fid_spread": spread}
    assert tables.written(summary, tables.COLUMNS[0]).replace("\u00a0", " ") == expected


def test_the_first_table_has_eight_columns_and_the_second_the_rest(tmp_path: Path):
    _, _, markdown = make(tmp_path, write_all(tmp_path, kid=1e-3))
    first, second = (cells(markdown, number)[0] for number in (0, 1))
    assert len(first) == 8
    assert first[:3] == ["Method", "Bits", "FID ↓"]
    others = {"FID∞ ↓", "IS ↑", "Precision ↑", "KID (10⁻³) ↓", "MSE to FP (10⁻³) ↓"}
    assert others == set(second[2:])
    assert not set(first[2:]) & set(second[2:])


def test_a_size_that_surprises_is_explained(tmp_path: Path):
    rows = [
        row("nearest", "w8a8", weight_mib=2.0),
        row("quest", "w8a8", weight_mib=0.4),
        row("quest", "w4a4", weight_mib=0.5),
    ]
    _, _, markdown = make(tmp_path, [write_metrics(tmp_path, each) for each in rows])
    said = (
        "W4A4 of QuEST is larger than W8A8: a scale is stored in 32 bits, and those of its activations are per channel."
    )
    assert said in markdown
    _, _, markdown = make(tmp_path, [write_metrics(tmp_path, each | {"weight_mib": 1.0}) for each in rows])
    assert "larger than" not in markdown


def test_a_page_by_itself_holds_the_same(tmp_path: Path):
    content, _, _ = make(tmp_path, write_all(tmp_path))
    page = tables.to_html(content)
    assert page.count("<table>") == 2
    assert "<caption>Quality, size and cost</caption>" in page
    assert '<td class="words">QuEST</td><td class="words">W4A4</td><td class="number">40.00</td>' in page
    assert "<script" not in page


def test_a_column_that_nothing_has_is_left_out(tmp_path: Path):
    _, _, markdown = make(tmp_path, write_all(tmp_path, recall=None))
    assert "Recall" not in markdown
    assert "Precision" in markdown


def test_csv_keeps_every_digit_and_integers(tmp_path: Path):
    files = [write_metrics(tmp_path, row(fid=1 / 3, images=50000)), write_metrics(tmp_path, row(seed=1, images=50000))]
    _, text, _ = make(tmp_path, files)
    first = next(csv.DictReader(io.StringIO(text)))
    assert float(first["fid"]) == 1 / 3
    assert first["images"] == "50000"
    assert list(first)[:6] == ["dataset", "method", "bits", "seed", "chain_seed", "fid"]


def test_the_caption_says_what_was_measured_with_what(tmp_path: Path):
    _, _, markdown = make(tmp_path, write_all(tmp_path))
    assert "digits: 1,000 images a cell against 1,797 real ones, features of digits-classifier, seed 0" in markdown


@pytest.mark.parametrize(
    ("content", "manifest", "message"),
    [
        ({"extractor_sha256": "0" * 64}, {}, "extractor is 00000000…"),
        ({"images": 500}, {}, "images is 500, but 1000 in"),
        ({"backend": "integer"}, {}, "backend is 'integer', but 'fake' in"),
        ({}, {"inputs": {"reference": "0" * 64}}, "reference is 00000000…, but "),
        ({}, {"inputs": {"model": "0" * 64}}, "model is 00000000…"),
        ({"neighbours": 5}, {}, "neighbours is 5, but 3 in"),
        ({"inception_split_size": 5000}, {}, "inception_split_size is 5000, but 100 in"),
        ({"kid_block_size": 1000}, {}, "kid_block_size is 1000, but 100 in"),
        ({"resize": "tf1-bilinear-299"}, {}, "resize is 'tf1-bilinear-299', but 'none' in"),
        ({"manifold_images": 10_000}, {}, "manifold_images is 10000, but 1797 in"),
        (
            {"clip_model": "openai/clip-vit-large-patch14"},
            {},
            "clip_model is 'openai/clip-vit-large-patch14', but None",
        ),
        ({"clip_prompts_sha256": "0" * 64}, {}, "clip_prompts_sha256 is 00000000…"),
        ({}, {"settings": {"sampler": {"steps": 50, "eta": 0.0}}}, "sampler is {'eta': 0.0, 'steps': 50}, but"),
    ],
)
def test_mixed_protocols_are_refused(tmp_path: Path, content: dict, manifest: dict, message: str):
    files = [write_metrics(tmp_path, row("fp", "w32a32")), write_metrics(tmp_path, row(**content), manifest)]
    with pytest.raises(ValueError, match=rf"quest-w4a4-seed0.json: {re.escape(message)}.*fp-w32a32-seed0.json"):
        make(tmp_path, files)
    assert not (tmp_path / "t.json").exists()


def test_another_dataset_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"quest-w4a4-seed0.json: measured on 'shapes', the table is of 'digits'"):
        make(tmp_path, [write_metrics(tmp_path, row(dataset="shapes"))])


def test_a_cell_given_twice_is_refused(tmp_path: Path):
    (tmp_path / "copy").mkdir()
    files = [write_metrics(tmp_path, row()), write_metrics(tmp_path / "copy", row(fid=1.0))]
    with pytest.raises(ValueError, match=r"copy/quest-w4a4-seed0.json: the same cell as .*quest-w4a4-seed0.json"):
        make(tmp_path, files)


def test_equal_metrics_give_equal_bytes_in_any_order(tmp_path: Path):
    files = write_all(tmp_path, seeds=2)
    make(tmp_path, files)
    first = [(tmp_path / f"t.{suffix}").read_bytes() for suffix in ("json", "csv", "md")]
    make(tmp_path, files[::-1])
    assert [(tmp_path / f"t.{suffix}").read_bytes() for suffix in ("json", "csv", "md")] == first
    assert json.loads(first[0])["manifest"]["kind"] == "table"


@pytest.mark.parametrize(
    ("method", "bits", "expected"),
    [
        ("fp", "w32a32", "Full precision"),
        ("quest", "w4a4", "QuEST W4A4"),
        ("q-diffusion", "w4a8", "Q-Diffusion W4A8"),
        ("mine", "w8a8", "mine W8A8"),
        ("quest+no-global-loss", "w4a4", "QuEST (no global loss) W4A4"),
        ("traq+per-tensor", "w4a4", "TRAQ (ours, per tensor) W4A4"),
    ],
)
def test_cells_are_named_as_people_write_them(method: str, bits: str, expected: str):
    assert tables.label(method, bits) == expected


def test_tables_and_tracking_never_import_torch():
    modules = ("report.tables", "report.tracking", "stages.table", "stages.write_table", "stages.track")
    imports = ", ".join(f"quest.{name}" for name in modules)
    code = f"import sys, {imports}; sys.exit('torch' in sys.modules or 'mlflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_score_is_a_few_numbers_of_a_row(tmp_path: Path):
    metrics = write_metrics(tmp_path, row("quest", "w4a4", fid=12.3456))
    score.run(metrics, tmp_path / "score.json")
    numbers = json.loads((tmp_path / "score.json").read_text())
    assert numbers == {"fid": 12.35, "psnr": 30.0, "recall": 0.6, "size_mib": 0.5}
    full = write_metrics(tmp_path, row("fp", "w32a32"))
    score.run(full, tmp_path / "score.json")
    assert "psnr" not in json.loads((tmp_path / "score.json").read_text())


def test_rows_name_a_backend_that_is_not_the_default(tmp_path: Path):
    methods = [("fp", "w32a32"), ("quest", "w8a8"), ("quest+no-global-loss", "w8a8")]
    rows = [row(*cell, backend="integer") for cell in methods]
    content, text, markdown = make(tmp_path, [write_metrics(tmp_path, each) for each in rows])
    names = [line[0] for line in cells(markdown)[1:]]
    assert names == ["Full precision", "QuEST (integer kernels)", "QuEST (no global loss, integer kernels)"]
    assert {line["backend"] for line in csv.DictReader(io.StringIO(text))} == {"integer"}
    assert content["summary"][1]["backend"] == "integer"
    _, text, markdown = make(tmp_path, write_all(tmp_path))
    assert "integer kernels)" not in markdown
    assert "backend" not in text


def test_caption_says_what_shares_a_scale_and_which_layers_are_quantized(tmp_path: Path):
    rows = [row("quest", "w8a8", activation_granularity="per_tensor", policy="common"), row("quest", "w4a4")]
    _, _, markdown = make(tmp_path, [write_metrics(tmp_path, each) for each in rows])
    assert "Activation scales: per tensor at W8A8, per channel at W4A4; layers: common." in markdown
    assert "Weight scales" not in markdown
    rows = [each | {"weight_granularity": "groups_of_64"} for each in rows]
    _, _, markdown = make(tmp_path, [write_metrics(tmp_path, each) for each in rows])
    assert "Weight scales: groups of 64. Activation scales: per tensor" in markdown
    rows.append(row("nearest+paper", "w4a4", policy="paper"))
    _, _, markdown = make(tmp_path, [write_metrics(tmp_path, each) for each in rows])
    assert "paper for Nearest (paper)" in markdown
    assert "common for QuEST" in markdown


def test_activation_scales_of_methods_that_differ_are_told_apart(tmp_path: Path):
    rows = [row("quest"), row("nearest", activation_granularity="multiples")]
    rows += [row("traq", activation_granularity="offsets")]
    _, _, markdown = make(tmp_path, [write_metrics(tmp_path, each) for each in rows])
    said = "per tensor with a zero point and a multiple per channel at W4A4 of Nearest, per channel at W4A4 of QuEST, "
    said += "per tensor with a zero point per channel at W4A4 of TRAQ (ours);"
    assert f"Activation scales: {said}" in markdown


_EVERY, _NONE = "can multiply every quantized row", "can multiply none of these rows; the others' scales do not factor"
_SHIFTED = "; offsets: codes are shifted as they are made"
_MULTIPLIED = "; multiples: codes times the whole number of their channel"


@pytest.mark.parametrize(
    ("grids", "said"),
    [
        ({"activation_granularity": "per_tensor"}, [_EVERY]),
        ({"activation_granularity": "offsets"}, [_EVERY, _SHIFTED]),
        ({"activation_granularity": "multiples"}, [_EVERY, _MULTIPLIED]),
        ({"activation_granularity": "per_tensor and multiples"}, [_EVERY, _MULTIPLIED]),
        ({"activation_granularity": "multiples and per_channel"}, [_NONE]),
        ({"activation_granularity": "per_channel"}, [_NONE]),
        ({"activation_granularity": "per_token"}, [_NONE]),
        ({"activation_granularity": "per_tensor and per_channel"}, [_NONE]),
        ({"activation_granularity": "per_tensor", "weight_granularity": "groups_of_64"}, [_NONE]),
        ({"activation_granularity": None}, []),
    ],
)
def test_it_is_said_whether_integer_kernels_can_multiply(tmp_path: Path, grids: dict[str, Any], said: list[str]):
    files = [write_metrics(tmp_path, each) for each in (row("fp", "w32a32"), row(**grids))]
    _, _, markdown = make(tmp_path, files)
    found = [each for each in (_EVERY, _NONE, _SHIFTED, _MULTIPLIED) if each in markdown]
    assert found == said
    assert ("Integer kernels" in markdown) == bool(said)


def test_the_rows_that_integer_kernels_can_multiply_are_named(tmp_path: Path):
    kinds = {
        ("quest", "w8a8"): "per_tensor",
        ("traq", "w8a8"): "per_tensor",
        ("quest", "w4a4"): "per_channel",
        ("traq", "w4a4"): "multiples",
    }
    rows = [row(*cell, activation_granularity=kind) for cell, kind in kinds.items()]
    _, _, markdown = make(tmp_path, [write_metrics(tmp_path, each) for each in (row("fp", "w32a32"), *rows)])
    assert "Integer kernels can multiply W8A8, W4A4 of TRAQ (ours); the others' scales" in markdown


def test_missing_chains_are_named_in_their_row(tmp_path: Path):
    rows = [row("fp", "w32a32", seed) for seed in range(3)]
    rows += [row("quest", seed=seed) for seed in range(3)]
    rows += [row("nearest", seed=seed) for seed in range(2)]
    rows += [row("ptqd", seed=seed, chain_seed=0) for seed in range(3)]
    _, _, markdown = make(tmp_path, [write_metrics(tmp_path, each) for each in rows])
    names = [line[0] for line in cells(markdown)[1:]]
    assert names == ["Full precision", "Nearest (2 of 3 chains)", "PTQD (1 of 3 chains)", "QuEST"]
    rows = [each | {"chain_seed": each["chain_seed"] and 0} for each in rows[:8]]
    _, _, markdown = make(tmp_path, [write_metrics(tmp_path, each) for each in rows])
    assert [line[0] for line in cells(markdown)[1:]] == ["Full precision", "Nearest (2 of 3 seeds)", "QuEST"]


def test_mixed_policies_in_a_column_are_refused(tmp_path: Path):
    """Unless the row says so. What the settings call it counts: QuEST's paper has no exceptions, so `everything`."""
    rows = [row("quest", policy="common"), row("quest+everything", policy="everything"), row("fp", "w32a32")]
    files = [write_metrics(tmp_path, each) for each in rows]
    make(tmp_path, files)
    files.append(write_metrics(tmp_path, row("nearest", policy="everything")))
    message = r"nearest-w4a4-seed0.json: policy is 'everything', but 'common' in .*quest-w4a4-seed0.json; a column"
    with pytest.raises(ValueError, match=message):
        make(tmp_path, files)
    papers = [row("quest", policy="everything"), row("ptqd", policy="paper")]
    make(tmp_path, [write_metrics(tmp_path, each, {"settings": {"method": {"policy": "paper"}}}) for each in papers])
