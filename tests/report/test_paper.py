"""Tables of the papers: ours beside what was published, and what is missing with its reason."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from result_files import row, write_metrics

from quest.artifacts import load_json
from quest.config.methods import MethodsSettings
from quest.config.values import ConfigError
from quest.stages import paper

ROOT = Path(__file__).parents[2]
ABSENT = "not run: the weights of digits are not here (data/models/digits/denoiser.safetensors)"
ROWS: list[dict[str, Any]] = [
    {"dataset": "LSUN", "label": "PTQ4DM", "bits": "w4a4", "published": {"fid": "N/A"}},
    {"dataset": "LSUN", "method": "tfmq-dm", "bits": "w4a32", "published": {"fid": 3.6}},
    {"dataset": "LSUN", "method": "nearest", "bits": "w4a4", "published": {"fid": 10.6}, "mark": "re-run"},
    {"dataset": "LSUN", "method": "quest", "bits": "w4a4", "published": {"fid": 5.64, "hours": 1.5}},
    {"method": "quest+tla-only", "bits": "w4a4", "note": "not in the paper"},
]
TABLE = {"title": "A table", "source": "a paper, table 3", "columns": ["fid", "hours", "seconds", "host_mb"]}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a project that has the digits' protocol and the variants, but not the model's weights."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)


def write(
    folder: Path,
    metrics: list[Path],
    rows: list[dict[str, Any]],
    place: dict[str, str] | None = None,
    name: str = "small",
) -> tuple[list[dict[str, Any]], list[dict[str, str]], str]:
    """Rows of the artifact and of the CSV, and the Markdown."""
    datasets = {
        "LSUN": place or {"stand_in": "digits", "dataset": None},
        "FFHQ": {"stand_in": "shapes", "dataset": None},
    }
    published = folder / "config" / "published.yaml"
    published.write_text(yaml.safe_dump({"datasets": datasets, "tables": {"small": TABLE | {"rows": rows}}}))
    json, text, markdown = (folder / f"t.{suffix}" for suffix in ("json", "csv", "md"))
    paper.run(name, "digits", metrics, published, json, text, markdown)
    content = load_json(json, "paper").content
    return content["rows"], list(csv.DictReader(io.StringIO(text.read_text()))), markdown.read_text()


def benchmark(folder: Path, job: str, seconds: float, memory: str) -> None:
    file = folder / "benchmarks" / f"{job}.tsv"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"s\tmax_rss\n{seconds}\t{memory}\n")


def test_ours_stand_beside_what_was_published(tmp_path: Path):
    rows, text, markdown = write(tmp_path, [write_metrics(tmp_path, row("quest", seed=seed)) for seed in (0, 1)], ROWS)
    quest = rows[3]
    assert (quest["fid"], quest["fid_published"], quest["seeds"]) == (40.5, 5.64, 2)
    assert quest["fid_spread"] == pytest.approx(0.5**0.5)
    assert quest["source"] == "a paper, table 3"
    assert (text[3]["fid"], text[3]["fid_published"]) == ("40.5", "5.64")
    line = next(line for line in markdown.splitlines() if line.startswith("| QuEST "))
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        *("QuEST", "W4A4", "LSUN", "5.64", "40.50\u00a0±\u00a00.71", "1.50", ""),
    ]
    assert "table 3. Here: digits, seeds 0, 1, one whole chain each. It stands in for LSUN:" in markdown


def test_seeds_that_share_a_quantization_have_its_cost_and_no_spread_of_it(tmp_path: Path):
    changes = {"settings": {"method": {"rounding": "nearest"}}}
    metrics = [write_metrics(tmp_path, row("quest", seed=seed, chain_seed=0), changes) for seed in (0, 1, 2)]
    benchmark(tmp_path, "finetune/digits/quest-w4a4-seed0", 100, "900")
    rows, text, markdown = write(tmp_path, metrics, ROWS)
    assert (rows[3]["seeds"], rows[3]["chains"], text[3]["chains"]) == (3, 1, "1")
    assert (rows[3]["seconds"], rows[3]["seconds_spread"]) == (100, None)
    assert rows[3]["fid_spread"] == 1
    alone = "one quantization (of seed 0), sampling seeds 0, 1, 2, so the spread is that of sampling alone."
    assert f"Here: digits, {alone} It stands in for LSUN:" in markdown


def test_what_a_dataset_does_not_stand_in_for_is_named(tmp_path: Path):
    metrics = [write_metrics(tmp_path, row("quest"))]
    _, _, markdown = write(tmp_path, metrics, [ROWS[3], ROWS[3] | {"dataset": "FFHQ"}])
    assert "It stands in for LSUN: the order" in markdown
    assert "It is no stand-in for FFHQ: there even the order of the methods may be another." in markdown


def test_what_is_missing_has_a_reason_and_is_not_zero(tmp_path: Path):
    rows, text, markdown = write(tmp_path, [write_metrics(tmp_path, row("quest"))], ROWS)
    assert [r["missing"] for r in rows] == [
        "PTQ4DM is not implemented here",
        "W4A32 is not run here: weights and activations are quantized together",
        ABSENT,
        None,
        ABSENT,
    ]
    assert [r["fid"] for r in rows] == [None, None, None, 40.0, None]
    assert [line["fid"] for line in text] == ["", "", "", "40.0", ""]
    assert f"not in the paper; {ABSENT}" in markdown
    assert "10.60*" in markdown
    assert "N/A" in markdown


def test_nothing_measured_is_a_table_still(tmp_path: Path):
    rows, _, markdown = write(tmp_path, [], ROWS)
    assert {r["fid"] for r in rows} == {None}
    assert "FID ↓, here" not in markdown
    assert "5.64" in markdown


def test_on_a_papers_own_dataset_nothing_stands_in_and_rows_of_another_are_missing(tmp_path: Path):
    place = {"stand_in": "shapes", "dataset": "digits"}
    metrics = [write_metrics(tmp_path, row("quest"))]
    _, _, markdown = write(tmp_path, metrics, ROWS, place)
    assert "stands in" not in markdown
    rows, _, _ = write(tmp_path, metrics, [ROWS[3], ROWS[3] | {"dataset": "FFHQ"}], place)
    assert [(r["fid"], r["missing"]) for r in rows] == [
        (40.0, None),
        (None, "not run: the weights of FFHQ are not those of digits"),
    ]


def test_cost_is_that_of_the_jobs_that_quantize_the_cell(tmp_path: Path):
    changes = {"settings": {"method": {"sets": 5}}}
    metrics = [write_metrics(tmp_path, row("quest", seed=seed), changes) for seed in (0, 1)]
    for seed, seconds in enumerate((100, 120)):
        benchmark(tmp_path, f"finetune/digits/quest-w4a4-seed{seed}", seconds, "900.5")
        benchmark(tmp_path, f"reconstruct/digits/blocks-common-w4-seed{seed}", 50, "-")
    rows, _, markdown = write(tmp_path, metrics, ROWS)
    assert (rows[3]["seconds"], rows[3]["host_mb"]) == (160, 900.5)
    assert rows[3]["seconds_spread"] == pytest.approx(200**0.5)
    assert "160\u00a0±\u00a014" in markdown


def test_from_nearest_weights_no_reconstruction_is_counted(tmp_path: Path):
    changes = {"settings": {"method": {"rounding": "nearest"}}}
    benchmark(tmp_path, "finetune/digits/quest-w4a4-seed0", 100, "900")
    rows, _, _ = write(tmp_path, [write_metrics(tmp_path, row("quest"), changes)], ROWS)
    assert rows[3]["seconds"] == 100


def test_rows_whose_rounding_has_not_converged_are_marked(tmp_path: Path):
    own = {"method": MethodsSettings().quest.model_dump(mode="json")}  # pyright: ignore[reportAttributeAccessIssue]
    files = [write_metrics(tmp_path, row("quest"), {"settings": own}), write_metrics(tmp_path, row("nearest"))]
    _, _, markdown = write(tmp_path, files, ROWS)
    assert markdown.count("Whether learned rounding has converged is not on record") == 1
    known = {"grouping": "blocks", "policy": "common", "weight_bits": 4, "iterations": 1000}
    known |= {"units": 26, "changed": 7, "unit": "conv_in", "change": -0.18}
    published = tmp_path / "config" / "published.yaml"
    json, text, made = (tmp_path / f"t.{ending}" for ending in ("json", "csv", "md"))
    paper.run("small", "digits", files, published, json, text, made, known)
    markdown = made.read_text()
    assert "| QuEST † " in markdown
    assert "| Nearest " in markdown
    assert (
        "the loss of 7 of 26 units of 4-bit weights changes by more than 5%, most that of conv_in (-18%)." in markdown
    )


def test_missing_chains_are_named_in_their_row(tmp_path: Path):
    """A row that was not measured says why instead."""
    cells = [row("quest", seed=0), row("quest", seed=1), row("nearest", seed=0)]
    _, _, markdown = write(tmp_path, [write_metrics(tmp_path, each) for each in cells], ROWS)
    names = [line.split("|")[1].strip() for line in markdown.splitlines() if line.startswith("| ")][1:]
    assert names == ["PTQ4DM", "TFMQ-DM", "Nearest (1 of 2 chains)", "QuEST", "QuEST (tla only)"]


def test_a_cost_that_is_not_known_is_missing(tmp_path: Path):
    changes = {"settings": {"method": {"sets": 5}}}
    benchmark(tmp_path, "finetune/digits/quest-w4a4-seed0", 100, "900")
    rows, _, _ = write(tmp_path, [write_metrics(tmp_path, row("quest"), changes)], ROWS)
    assert rows[3]["seconds"] is None


def test_mixed_protocols_are_refused(tmp_path: Path):
    metrics = [write_metrics(tmp_path, row("quest")), write_metrics(tmp_path, row("nearest", images=500))]
    with pytest.raises(ValueError, match=r"nearest-w4a4-seed0.json: images is 500, but 1000 in"):
        write(tmp_path, metrics, ROWS)
    assert not (tmp_path / "t.json").exists()


def test_an_unknown_table(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"unknown 'smal' \(did you mean 'small'\?\)"):
        write(tmp_path, [], ROWS, name="smal")


def test_equal_inputs_give_equal_bytes_in_any_order(tmp_path: Path):
    metrics = [write_metrics(tmp_path, row(method, seed=seed)) for method in ("quest", "nearest") for seed in (0, 1)]
    write(tmp_path, metrics, ROWS)
    first = [(tmp_path / f"t.{suffix}").read_bytes() for suffix in ("json", "csv", "md")]
    write(tmp_path, metrics[::-1], ROWS)
    assert [(tmp_path / f"t.{suffix}").read_bytes() for suffix in ("json", "csv", "md")] == first


def test_never_imports_torch():
    subprocess.run(
        [sys.executable, "-c", "import sys, quest.report.paper; sys.exit('torch' in sys.modules)"], check=True
    )


def real_table(folder: Path, name: str, dataset: str) -> tuple[list[dict[str, Any]], str]:
    """A published table with one cell, QuEST at W4A4, measured on ``dataset``: the rows that have it, and Markdown."""
    json, text, markdown = (folder / f"real.{suffix}" for suffix in ("json", "csv", "md"))
    metrics = write_metrics(folder, row("quest", dataset=dataset))
    paper.run(name, dataset, [metrics], folder / "config" / "published.yaml", json, text, markdown)
    return [row for row in load_json(json, "paper").content["rows"] if row["seeds"]], markdown.read_text()


def test_a_table_on_bedrooms_fills_the_rows_of_bedrooms_alone(tmp_path: Path):
    for name, dataset, own in (
        ("lsun", "lsun-bedrooms", "LSUN-Bedrooms"),
        ("lsun", "lsun-churches", "LSUN-Churches"),
        ("imagenet", "imagenet", "ImageNet"),
        ("cifar10", "cifar10", "CIFAR-10"),
    ):
        rows, markdown = real_table(tmp_path, name, dataset)
        assert {row["published_on"] for row in rows} == {own}
        assert "stand" not in markdown.splitlines()[-1].replace("standard deviation", "")
    rows, _ = real_table(tmp_path, "imagenet", "lsun-bedrooms")
    assert rows == []


def test_nothing_stands_in_for_a_dataset_that_is_not_named(tmp_path: Path):
    rows, markdown = real_table(tmp_path, "global-loss", "digits")
    assert {row["published_on"] for row in rows} == {"not named"}
    assert "stand" not in markdown.splitlines()[-1].replace("standard deviation", "")
    assert "Where the source names no dataset, even the order of the methods may be another." in markdown
