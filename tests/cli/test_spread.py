"""Figures 2 and 5 from what is here: of a model its ranges, of a checkpoint what finetuning changed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from quest import paths
from quest.cli import main
from quest.stages import analyse

CHECKPOINT = "results/finetune/digits/quest-w4a4-seed0.safetensors"
ROUNDING = "results/reconstruction/digits/blocks-common-w4-seed0.safetensors"


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, dict[str, Any]]]:
    """A project with models of digits and shapes; the studies that are run, with their files, instead of running."""
    calls: list[tuple[str, str, dict[str, Any]]] = []

    def run(study: str, dataset: str, *_rest: Any, **files: Any) -> None:
        calls.append((study, dataset, {name: [str(file) for file in found] for name, found in files.items()}))

    shutil.copytree(Path(paths.CONFIG).resolve(), tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(analyse, "run", run)
    for dataset in ("digits", "shapes"):
        touch(f"data/models/{dataset}/denoiser.safetensors")
    return calls


def touch(name: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).touch()


def spread(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["spread", "--device", "cpu", *arguments])


def test_what_is_here_decides_what_is_drawn(drawn: list[tuple[str, str, dict[str, Any]]]):
    touch(CHECKPOINT)
    done = spread()
    assert done.exit_code == 0, done.output
    model, of_shapes = ([f"data/models/{name}/denoiser.safetensors"] for name in ("digits", "shapes"))
    checked = {"model": model, "checkpoint": [CHECKPOINT], "reconstruction": []}
    assert drawn == [
        ("ranges", "digits", {"model": model}),
        ("distributions", "digits", checked),
        ("histograms", "digits", checked),
        ("ranges", "shapes", {"model": of_shapes}),
    ]
    assert "shapes: no results/finetune/shapes/quest-w4a4-seed0.safetensors" in done.output
    touch(ROUNDING)
    drawn.clear()
    spread("digits")
    assert drawn[1][2]["reconstruction"] == [ROUNDING]


def test_a_dataset_that_is_not_here_is_named_with_the_nearest(drawn: list[tuple[str, str, dict[str, Any]]]):
    done = spread("digts")
    assert done.exit_code == 1
    assert "digts" in done.output
    assert "digits" in done.output
    assert drawn == []


def test_without_models_it_says_what_to_pull(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    done = spread()
    assert (done.exit_code, "`dvc pull data/models`" in done.output) == (1, True)
