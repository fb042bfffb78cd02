"""Real runs of snakemake and dvc in scratch projects, with a stub for the work itself."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from project import Plan, Project

pytestmark = pytest.mark.workflow

NOTHING = "Nothing to be done"


def test_a_run_writes_everything_once(project: Project) -> None:
    planned = {str(job.output[0]) for job in Plan(project).jobs}
    output = project.snakemake()
    assert "50 of 50 steps (100%) done" in output
    assert {call.split()[1] for call in project.calls()} == planned
    assert NOTHING in project.snakemake()
    assert not project.calls()
    benchmarks = {str(file.relative_to(project.root)) for file in (project.root / "benchmarks").rglob("*.tsv")}
    assert "benchmarks/finetune/digits/quest-w4a8-seed0.tsv" in benchmarks
    assert len(benchmarks) == len(planned)


def test_a_changed_setting_runs_what_was_planned_and_then_nothing(finished: Project) -> None:
    finished.calls()
    finished.edit("config/datasets/digits.yaml", "methods", "quest", "cma_epochs", value=5)
    planned = {str(job.output[0]) for job in Plan(finished).jobs}
    finished.snakemake()
    assert {call.split()[1] for call in finished.calls()} == planned
    assert NOTHING in finished.snakemake("--dry-run")


def test_the_environment_need_not_be_activated(finished: Project) -> None:
    finished.calls()
    table = "results/tables/digits.json"
    (finished.root / table).unlink()
    finished.run(str(finished.bin / "snakemake"), table, PATH=os.defpath)
    assert finished.calls() == {f"table {table}"}


def test_an_error_of_the_configuration_is_one_sentence(project: Project) -> None:
    project.edit("config/datasets/digits.yaml", "sampler", "step", value=10)
    output = project.snakemake(check=False)
    assert "config/datasets/digits.yaml: sampler.step: unknown 'step' (did you mean 'steps'?)" in output
    assert "Traceback" not in output
    assert not (project.root / "results").exists()


def test_interrupted_in_the_middle_of_a_job(project: Project) -> None:
    """What the job had half written is not taken for a result; what was finished before it stays."""
    slow = "results/finetune/digits/quest-w4a4-seed0.safetensors"
    process = subprocess.Popen(
        ["snakemake", "--cores", "1", slow],
        cwd=project.root,
        env=project.environment(QUEST_STUB_SLOW=slow),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
    )
    try:
        deadline = time.monotonic() + 60
        while not (project.root / slow).exists():
            assert process.poll() is None, "snakemake ended before the job was interrupted"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C in a terminal does
        assert process.wait(timeout=30) != 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert {call.split()[0] for call in project.calls()} == {"calibrate", "reconstruct", "finetune"}
    project.snakemake(slow)  # nothing is locked
    assert project.calls() == {f"finetune {slow}"}
    assert "half" not in (project.root / slow).read_text()
    assert NOTHING in project.snakemake("--dry-run", slow)


def test_a_clone_that_pulls_has_nothing_to_do_and_knows_why(finished: Project, tmp_path: Path) -> None:
    (finished.root / "calls.txt").unlink()
    finished.run("git", "init", "--quiet")
    finished.run("python", "-m", "workflow.plan")
    finished.run("dvc", "commit", "--force", "--quiet")
    assert "up to date" in finished.run("dvc", "status")
    repro = finished.run("dvc", "repro")
    assert repro.count("didn't change, skipping") == 13
    assert not finished.calls()
    finished.run("dvc", "push")
    finished.run("git", "add", "--all")
    finished.run("git", "commit", "--quiet", "--message", "a run")
    assert re.search(r"^results/\w+/digits", finished.run("git", "ls-files"), re.MULTILINE) is None

    finished.run("git", "clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone", finished.bin)
    clone.run("dvc", "pull", "data/models")
    assert "reference" in Plan(clone).rules()
    clone.run("dvc", "pull")
    assert NOTHING in clone.snakemake("--dry-run")
    assert "up to date" in clone.run("dvc", "status")
    assert clone.run("git", "status", "--porcelain") == ""
    metrics = clone.run("dvc", "metrics", "show", "--md")
    assert re.search(r"\| Path +\| fid +\|\n", metrics), metrics
    assert len(re.findall(r"^\| results/scores/digits/\S+-seed0\.json +\| \d+ +\|$", metrics, re.MULTILINE)) == 7

    clone.edit("config/datasets/digits.yaml", "methods", "quest", "cma_epochs", value=5)
    assert Plan(clone).rules()["finetune"] == 3
    shutil.rmtree(clone.root / "results" / "samples")
    assert "calibrate" not in Plan(clone).rules()


def test_dvc_repro_runs_the_same_jobs(finished: Project) -> None:
    finished.run("git", "init", "--quiet")
    finished.run("python", "-m", "workflow.plan")
    finished.run("dvc", "commit", "--force", "--quiet")
    finished.calls()
    finished.edit("config/datasets/digits.yaml", "evaluation", "neighbours", value=4)
    planned = {str(job.output[0]) for job in Plan(finished, targets=("measure_all",)).jobs}
    finished.run("dvc", "repro", "measure")
    assert {call.split()[1] for call in finished.calls()} == planned
    assert "up to date" in finished.run("dvc", "status", "measure")
    assert NOTHING in finished.snakemake("--dry-run", "measure_all")


def test_dvc_repro_plans_anew_and_runs_nothing_for_a_mere_name(finished: Project) -> None:
    """Not even where images are not shared, which a run would make again."""
    finished.run("git", "init", "--quiet")
    finished.run("python", "-m", "workflow.plan")
    finished.run("dvc", "commit", "--force", "--quiet")
    finished.calls()
    finished.edit("config/datasets/digits.yaml", "title", value="another name")
    assert finished.run("dvc", "repro").count("Running stage") == 1
    assert not finished.calls()
    assert "analyse" not in finished.run("dvc", "stage", "list")


def test_the_report_shows_tables_and_pictures(finished: Project) -> None:
    finished.snakemake("--report", "report.html")
    report = (finished.root / "report.html").read_text()
    for file in (
        "results/tables/digits.csv",
        "results/figures/digits/samples.png",
        "results/figures/digits/comparison.png",
        "results/figures/digits/tradeoff.png",
    ):
        assert file in report
    assert "Images of <em>digits</em>" in report or "Images of digits" in report


def test_what_a_run_needs_and_nothing_makes_is_asked_for(default_project: Project) -> None:
    project = default_project
    suite = ("--config", "suite=paper", "--")
    reference = "results/reference/lsun-churches/reference.safetensors"
    output = project.snakemake(*suite, reference, check=False)
    assert re.search(r"data/\S+: missing; (put the (reference batch|weights))", output)
    assert not (project.root / reference).exists()
    files = ("data/references/lsun_churches256.npz", "data/models/inception/weights-inception-2015-12-05-6726825d.pth")
    for file in map(project.root.joinpath, files):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("brought")
    project.snakemake(*suite, reference)
    assert project.calls() == {f"reference {reference}"}
    project.snakemake("--forceall", *suite, reference)
    assert all((project.root / file).read_text() == "brought" for file in files)


def test_the_report_explains_itself_and_the_tables_of_the_paper(finished: Project) -> None:
    finished.edit("config/config.yaml", "tables", value=["rounding"])
    finished.snakemake()
    assert NOTHING in finished.snakemake("--dry-run")
    finished.snakemake("--report", "report.html")
    report = (finished.root / "report.html").read_text()
    for text in ("results/paper/digits/rounding.csv", "Tables of the paper, and ablations", "Low-bit diffusion models"):
        assert text in report
