"""The short form of the harness: a few of each kind of damage, found by name, and kills that nothing is lost by."""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path

import pytest
import torch

from quest.artifacts import Manifest, load_json, save_json, save_tensors
from tests.reliability import harness

ROOT = Path(__file__).parents[2]
CONFIG = [*sorted((ROOT / "config").glob("*.yaml")), *sorted((ROOT / "config/datasets").glob("*.yaml"))]


@pytest.fixture
def rng() -> random.Random:
    return random.Random(0)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """An artifact of each format."""
    save_tensors(
        tmp_path / "a.safetensors", {"weight": torch.arange(3000.0)}, Manifest(kind="toy", notes={"a": [1, 2]})
    )
    save_json(tmp_path / "b.json", {"rows": [{"fid": 0.1, "method": "quest"}] * 9}, Manifest(kind="toy"))
    return sorted(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [harness.flipped, harness.cut])
def test_damaged_artifacts_are_refused_by_name(files: list[Path], damage: object, rng: random.Random) -> None:
    before = [file.read_bytes() for file in files]
    count = harness.damages(files, damage, harness.artifact_reader(files), 300, rng)  # type: ignore[arg-type]
    assert (count.tried, count.right, count.wrong) == (300, 300, [])
    assert [file.read_bytes() for file in files] == before


def test_the_harness_itself_finds_what_is_not_refused(files: list[Path], rng: random.Random) -> None:
    count = harness.damages(files, harness.cut, lambda file: file.read_bytes(), 3, rng)
    assert (count.right, count.wrong) == (0, [harness.NOTHING] * 3)
    count = harness.damages(files, harness.cut, lambda _: load_json(Path("another.json"), "toy"), 1, rng)
    assert "is not named" in count.wrong[0]
    assert harness.mangles(CONFIG[:1], lambda _: {}["missing"], 1, rng).wrong[0].endswith("KeyError: 'missing'")


def test_mangled_configuration_is_read_or_refused_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    files = [file for file in sorted(Path("config").rglob("*.yaml")) if file.parent.name != "models"]
    count = harness.mangles(files, harness.load_run, 60, random.Random(1))
    assert (count.tried, count.right, count.wrong) == (60, 60, [])


def test_killed_writers_leave_whole_files(rng: random.Random) -> None:
    count = harness.writes(10, rng)
    assert (count.tried, count.right, count.wrong) == (10, 10, [])


RUN = """
import os, sys, time
with open("starts", "a") as file:
    file.write("start ")
starts = len(open("starts").read().split())
if starts == 2 and sys.argv[1] == "refuses":
    sys.exit(3)
time.sleep(60 if starts < 3 else 0)
"""


@pytest.mark.parametrize(("kind", "tried", "right"), [("goes-on", 2, 2), ("refuses", 1, 0)])
def test_starts_after_a_kill_are_counted(tmp_path: Path, rng: random.Random, kind: str, tried: int, right: int) -> None:
    log = tmp_path / "log"
    count = harness.kills([sys.executable, "-c", RUN, kind], tmp_path, 2, (1.5, 2), rng, log)
    assert (count.tried, count.right) == (tried, right)
    assert count.wrong == ([] if right else [f"start 1 ended with 3; see {log}"])
