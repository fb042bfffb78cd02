"""dvc.yaml says the same as the rules: a stage for each, its files, and all the code that the stage runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from project import Plan, Project
from test_provenance import provenance

from quest.config.methods import METHODS
from quest.config.run import RunSettings
from quest.studies import STUDIES

ROOT = Path(__file__).parents[2]
STAGES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
CODE = {
    "reference": ["quest.metrics.reference"],
    "calibrate": ["quest.learning.calibration"],
    "reconstruct": ["quest.learning.reconstruction"],
    "finetune": ["quest.methods", *(f"quest.methods.{name.replace('-', '_')}" for name in METHODS)],
    "sample": ["quest.diffusion.sampling"],
    "measure": ["quest.metrics.measure"],
    "table": ["quest.report.tables"],
    "figures": ["quest.report.figures"],
    "track": ["quest.report.tracking"],
    "analyse": ["quest.studies", *(f"quest.studies.{name}" for name in STUDIES)],
}


def folder(path: str) -> str:
    """The part of a result's path that DVC keeps as one."""
    return "/".join(Path(path).parts[:2])


def test_a_stage_for_each_rule(project: Project) -> None:
    (project.root / "data/models/digits/denoiser.safetensors").unlink()
    assert set(STAGES) == set(Plan(project, targets=("all", "analyses")).rules())


@pytest.mark.parametrize("name", STAGES)
def test_files_are_those_of_the_rule(project: Project, name: str) -> None:
    for file in (project.root / "data" / "models" / "digits").iterdir():
        file.unlink()
    stage, plan = STAGES[name], Plan(project, targets=(f"{name}_all",))
    jobs = [job for job in plan.jobs if job.rule.name == name]
    assert jobs
    assert stage["outs"] == [
        {folder(file): {"persist": True}} for file in {folder(str(f)) for job in jobs for f in job.output}
    ]
    inputs = {folder(str(f)) for job in jobs for f in job.input if str(f).startswith(("data/", "results/"))}
    assert {dep for dep in stage["deps"] if dep.startswith(("data/", "results/"))} == inputs
    assert stage["cmd"].endswith(f" {name}_all")


@pytest.mark.parametrize("name", CODE)
def test_code_that_a_stage_runs_is_among_its_dependencies(name: str) -> None:
    files = {str(file.relative_to(ROOT)) for file in provenance.closure(ROOT, *CODE[name]).values()}
    covered = {file for file in files for dep in STAGES[name]["deps"] if file == dep or file.startswith(f"{dep}/")}
    assert files - covered == set(), f"add these to the deps of {name} in dvc.yaml"
    for dep in STAGES[name]["deps"]:
        assert (ROOT / dep).exists() or dep.startswith(("data/", "results/")), f"{dep} is not there"


@pytest.mark.parametrize("name", STAGES)
def test_parameters_are_axes_of_the_run(name: str) -> None:
    for parameters in STAGES[name].get("params", []):
        assert set(parameters["config/config.yaml"]) <= set(RunSettings.model_fields)
