"""Each study as its command runs it: three files, none from bad input."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from quest import studies
from quest.cli import main
from quest.config.dataset import DatasetSettings
from quest.studies import STUDIES
from quest.studies.distributions import FINETUNED, FULL, RECONSTRUCTED

ANALYSIS = {"samples": 2, "steps": 2, "images": 2}


def call(study: str, settings: DatasetSettings, files: dict[str, tuple[Path, ...]], folder: Path) -> None:
    options = [str(part) for n in STUDIES[study].files for f in files[n] for part in (f"--{n.removesuffix('s')}", f)]
    outputs = [str(part) for kind in ("csv", "png", "svg") for part in (f"--{kind}", folder / f"{study}.{kind}")]
    arguments = ["analyse", study, "tiny", "--settings", settings.model_dump_json(), "--device", "cpu"]
    result = CliRunner().invoke(main, [*arguments, *options, *outputs])
    assert result.exit_code == 0, result.output


def test_a_study_writes_its_numbers_and_its_chart(
    files: dict[str, tuple[Path, ...]], make_settings: Callable[..., DatasetSettings], tmp_path: Path
):
    call("distributions", make_settings(analysis=ANALYSIS), files, tmp_path)
    assert set(pd.read_csv(tmp_path / "distributions.csv")["weights"]) == {FULL, RECONSTRUCTED, FINETUNED}
    assert (tmp_path / "distributions.png").read_bytes().startswith(b"\x89PNG")
    assert ">tiny: spread of every layer's output" in (tmp_path / "distributions.svg").read_text()


def test_bad_input_leaves_nothing(
    files: dict[str, tuple[Path, ...]], make_settings: Callable[..., DatasetSettings], tmp_path: Path
):
    wrong = files | {"checkpoints": files["model"]}
    with pytest.raises(AssertionError, match="kind 'model' where 'checkpoint' is expected"):
        call("scales", make_settings(analysis=ANALYSIS), wrong, tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_module_that_measures_is_a_study_that_a_command_knows():
    modules = [importlib.import_module(f"quest.studies.{each.name}") for each in pkgutil.iter_modules(studies.__path__)]
    measuring = {module.__name__.rpartition(".")[2] for module in modules if hasattr(module, "measure")}
    assert measuring == set(STUDIES)


def test_every_study_has_a_module_and_a_chart():
    for study in STUDIES:
        module = importlib.import_module(f"quest.studies.{study}")
        assert callable(module.measure)
        assert callable(module.chart)
