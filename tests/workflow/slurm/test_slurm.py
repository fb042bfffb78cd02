"""A run through a real Slurm of one node, started for the test. `one_node.sh install` brings it; CI goes without."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from project import Project

SCRIPT = Path(__file__).parent / "one_node.sh"
MISSING = next((name for name in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(name) is None), None)

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.skipif(MISSING is not None, reason=f"{MISSING} is not installed: {SCRIPT.name} install"),
    pytest.mark.skipif(os.geteuid() != 0, reason="starting Slurm takes root"),
    pytest.mark.skipif(find_spec("snakemake_executor_plugin_slurm") is None, reason="needs the extra slurm"),
]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "slurm"
    subprocess.run([SCRIPT, "start", folder], check=True, timeout=120)
    yield folder
    subprocess.run([SCRIPT, "stop", folder], check=True, timeout=60)


@pytest.mark.usefixtures("cluster")
def test_a_run_through_slurm_ends_as_one_here(project: Project) -> None:
    project.edit("config/config.yaml", "methods", value=["nearest"])
    project.edit("config/config.yaml", "bits", value=["w8a8"])
    output = project.snakemake(
        "--workflow-profile", "profiles/slurm", "--config", "gpus=0", "--slurm-init-seconds-before-status-checks", "2",
        timeout=600,
    )  # fmt: skip
    assert output.count("has been submitted with SLURM jobid") >= 8, "what is long goes through Slurm"
    assert (project.root / "results/tables/digits.md").exists()
    assert "Nothing to be done" in project.snakemake("--dry-run")
