"""The plan as JSON, which `quest estimate` reads: the same jobs as Snakemake's, in the order that they wait in."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from project import MODEL_BYTES, Plan, Project

from quest.config.values import ConfigError
from quest.estimate import plan
from workflow.jobs import jobs


def test_the_jobs_are_those_that_snakemake_plans(project: Project) -> None:
    found = jobs(project.root, {}, every=False)
    assert dict(Counter(job["rule"] for job in found)) == Plan(project).rules()
    assert {job["rule"]: job["threads"] for job in found}["calibrate"] == 2
    by_output = {output: job for job in found for output in job["outputs"]}
    finetune = by_output["results/finetune/digits/quest-w4a8-seed0.safetensors"]
    waits_for = {found[number]["rule"] for number in finetune["needs"]}
    assert waits_for == {"calibrate", "reconstruct"}
    assert finetune["settings"]["methods"]["quest"]["cma_epochs"] == 4
    assert finetune["benchmark"] == "benchmarks/finetune/digits/quest-w4a8-seed0.tsv"


def test_every_job_is_planned_though_all_is_there_but_no_model_that_is(finished: Project) -> None:
    assert jobs(finished.root, {}, every=False) == []
    rules = Counter(job["rule"] for job in jobs(finished.root, {}, every=True))
    assert rules["finetune"] == 6
    assert "pretrain" not in rules


def test_a_model_that_was_fetched_again_is_no_other_model(finished: Project) -> None:
    for model in (finished.root / "data/models/digits").glob("*.safetensors"):
        assert model.stat().st_size == MODEL_BYTES
        os.utime(model)
    assert jobs(finished.root, {}, every=False) == []


def test_a_suite_and_a_dataset_are_named_alike(project: Project) -> None:
    assert {job.dataset for job in plan.ask("quick", root=project.root)} == {"digits-quick"}
    found = plan.ask("digits-quick", root=project.root)
    assert {job.dataset for job in found} == {"digits-quick"}
    assert next(job for job in found if job.rule == "calibrate").settings is not None


def test_a_name_that_is_neither_is_refused(project: Project) -> None:
    with pytest.raises(ConfigError, match=r"'digit'.*digits"):
        plan.ask("digit", root=project.root)


def test_outside_of_a_project(project: Project) -> None:
    with pytest.raises(ConfigError, match="no Snakefile; run from the project's folder"):
        plan.ask(None, root=project.root / "config")


def test_what_the_plan_refuses_is_said_in_one_sentence(project: Project) -> None:
    project.edit("config/config.yaml", "methods", value=["nearst"])
    with pytest.raises(ConfigError, match=r"^the plan of the run: .*nearst"):
        plan.ask(None, root=project.root)


def test_cores_and_gpus_are_those_of_the_profile(project: Project) -> None:
    project.edit("profiles/default/config.yaml", "cores", value=7)
    assert plan.cores(project.root) == 7
    assert plan.gpus(project.root) == 2
