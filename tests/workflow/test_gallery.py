"""The report: everything that is in results/, tables as tables, made without a single job of the pipeline."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from result_files import row, write_all, write_metrics

from quest.artifacts import Manifest, load_json, save_json
from quest.report import paper, published
from quest.stages import table
from workflow import gallery

ROOT = Path(__file__).parents[2]
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8ffff3f0005fe02fe"
    "0def46b80000000049454e44ae426082"
)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone that pulled: a table with a picture, one of another suite, two tables of the paper, a study."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").symlink_to(ROOT / "config")
    metrics = write_all(tmp_path / "metrics", seeds=2)
    for name in ("digits", "digits.methods"):
        table.run("digits", metrics, gallery.TABLES / f"{name}.json")
    (gallery.TABLES / "records.json").write_text("{}\n{}\n")
    for file in (gallery.FIGURES / "digits" / "samples.png", gallery.ANALYSIS / "digits" / "errors.png"):
        file.parent.mkdir(parents=True)
        file.write_bytes(PNG)
    known = published.load()
    measured = [write_metrics(tmp_path / "metrics", row(seed=0))]
    for name in ("components", "cifar10"):
        found = {file: load_json(file, "metrics") for file in measured}
        content = paper.build(name, "digits", known, found, "not run", tmp_path)
        save_json(gallery.PAPER / "digits" / f"{name}.json", content, Manifest(kind="paper"))
    return tmp_path


def test_what_is_there_in_order(results: Path):
    found = [(item.category, item.subcategory, item.name) for item in gallery.items()]
    papers = "2 Tables of the papers, and ablations"
    assert found == [
        ("1 Runs", "digits, default", "Table"),
        ("1 Runs", "digits, default", "The same noise under every cell"),
        ("1 Runs", "digits, methods", "Table"),
        (papers, "digits", "05 Table 6: What each stage of QuEST gives and costs"),
        (papers, "digits", "10 Table 11: Pixel space, unconditional"),
        ("3 Studies of the paper", "digits", "errors"),
    ]


def test_the_first_page_answers_then_explains(results: Path):
    page = gallery.first_page()
    places = [page.index(text) for text in (".. list-table::", "data:image/png", "How to read this", "How it was made")]
    assert places == sorted(places)
    assert "40.50\u00a0±\u00a00.71" in page
    made = page[places[-1] :]
    assert "Nearest, QuEST quantized the same full-precision model" in made
    assert "torch" in made
    assert max(map(len, page.splitlines())) < 10_000, "docutils takes no longer lines"


def test_tables_are_pages_with_title_and_caption(results: Path):
    gallery.write(gallery.items())
    page = (gallery.FOLDER / "paper" / "digits" / "10-cifar10.html").read_text()
    assert "<h1>Table 11: Pixel space, unconditional (digits)</h1>" in page
    assert "<td" in page
    caption = (gallery.FOLDER / "runs" / "digits" / "1-table.rst").read_text()
    assert "seeds 0, 1, one whole chain each" in caption
    study = (gallery.FOLDER / "studies" / "digits" / "errors.rst").read_text()
    assert "of every layer's output on digits" in study


def test_quality_against_time_is_drawn_where_times_are_on_record(results: Path):
    for name, seconds in (("digits/quest-w4a4-seed0", 60), ("shapes/quest-w4a4-seed0", 60), ("digits/nearest-w4a4", 0)):
        write_time(results, name, seconds)
    write_metrics(results / "results/metrics/digits", row())
    (item,) = [item for item in gallery.items() if item.name == "Quality against time"]
    assert (item.category, item.subcategory) == ("1 Runs", "digits, all"), "of shapes there are no metrics"
    gallery.write([item])
    assert item.file.read_bytes().startswith(b"\x89PNG")
    assert "in which time on digits" in item.caption.read_text()


def write_time(root: Path, cell: str, seconds: int) -> None:
    entry = {"file": f"results/finetune/{cell}.safetensors", "record": {"starttime": 1, "endtime": 1 + seconds}}
    file = root / "results/finetune/records.json"
    file.parent.mkdir(exist_ok=True)
    with file.open("a") as lines:
        lines.write(json.dumps(entry) + "\n")


def test_without_a_table_it_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no table yet; `dvc pull` fetches the shared ones"):
        gallery.first_page()


@pytest.mark.workflow
def test_one_file_holds_all_of_it(results: Path):
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(ROOT / "workflow/report/Snakefile"),
        "--cores",
        "1",
    ]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path}
    style = ["--report-stylesheet", str(ROOT / "workflow/report/page.css")]
    for arguments in (["--force"], ["--report", "report.html", *style]):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, cwd=results)
        assert done.returncode == 0, done.stderr
    report = (results / "report.html").read_text()
    for text in (
        "Quality, size and cost",
        "Table 6: What each stage",
        "report/studies/digits/errors.png",
        "How to read",
    ):
        assert text in report
    if BROWSER is not None:
        assert top_of_the_first_page(report, results) >= 0, "above the window it is out of reach"


def top_of_the_first_page(report: str, folder: Path) -> float:
    """How far below the window's upper edge the title stands in a browser with a small window."""
    asked = """<script>setInterval(() => {
      const title = document.querySelector("h1.title");
      if (title) document.documentElement.dataset.top = title.getBoundingClientRect().top;
    }, 100)</script>"""
    page = folder / "opened.html"
    page.write_text(report + asked, encoding="utf-8")
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,300", f"--user-data-dir={folder}/user")
    command = [str(BROWSER), *flags, "--virtual-time-budget=5000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'data-top="(.*?)"', done.stdout)
    assert found, done.stderr[-2000:]
    return float(found[1])
