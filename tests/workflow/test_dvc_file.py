"""dvc.yaml says the same as the rules: a stage for each, its files, and the plan of its jobs."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from project import Plan, Project

from quest.config.dataset import load_dataset
from workflow.plan import plan

ROOT = Path(__file__).parents[2]
STAGES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
OF_RULES = [name for name in STAGES if name != "plan"]


def folder(path: str) -> str:
    """The part of a result's path that DVC keeps as one."""
    return "/".join(Path(path).parts[:2])


def rules(name: str) -> list[str]:
    """The rules that a stage runs."""
    return [target.removesuffix("_all") for target in STAGES[name]["cmd"].partition(" -- ")[2].split()]


def test_every_rule_is_in_one_stage(project: Project) -> None:
    (project.root / "data/models/digits/denoiser.safetensors").unlink()
    assert sorted(rule for name in OF_RULES for rule in rules(name)) == sorted(Plan(project).rules())


@pytest.mark.parametrize("name", OF_RULES)
def test_files_are_those_of_the_rules(project: Project, name: str) -> None:
    for file in (project.root / "data" / "models" / "digits").iterdir():
        file.unlink()
    stage, planned = STAGES[name], Plan(project, targets=tuple(f"{rule}_all" for rule in rules(name)))
    jobs = [job for job in planned.jobs if job.rule.name in rules(name)]
    outputs = {folder(str(file)) for job in jobs for file in job.output}
    assert stage["outs"] == [{file: {"persist": True}} for file in outputs]
    inputs = {folder(str(f)) for job in jobs for f in job.input if str(f).startswith(("data/", "results/"))} - outputs
    assert set(stage["deps"]) == inputs | {f"results/plan/{rule}.json" for rule in rules(name)}


def test_the_plan_is_what_the_rules_pass(project: Project) -> None:
    planned = plan(project.root)
    assert set(planned) == {rule for name in OF_RULES for rule in rules(name)}
    output = "results/finetune/digits/quest-w4a4-seed0.safetensors"
    job = Plan(project).job(output)
    assert planned["finetune"][output] == {"settings": job.params.settings, "code": job.params.code}
    assert json.loads(planned["finetune"][output]["settings"])["methods"]["quest"]["cma_epochs"] == 4
    assert len(planned["sample"]) == 14
    assert not logging.root.manager.disable, "a process that plans goes on to log"


def test_the_plan_depends_on_all_that_decides_it() -> None:
    assert set(STAGES["plan"]["deps"]) == {"Snakefile", "config", "quest", "workflow"}


def test_metrics_are_folders_of_datasets_alone(monkeypatch: pytest.MonkeyPatch):
    """What lies beside them, like Snakemake's records, is none, and DVC would complain of it."""
    monkeypatch.chdir(ROOT)
    listed = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["metrics"]
    datasets = [load_dataset(file.stem) for file in (ROOT / "config/datasets").glob("*.yaml")]
    embedded = {settings.model.parent.name for settings in datasets if settings.pretrain is not None}
    assert set(listed) == {f"results/scores/{dataset}" for dataset in embedded}
