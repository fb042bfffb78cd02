"""A scratch copy of the workflow: real commands in it, and plans of it made in this process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, Quietness, ResourceSettings

ROOT = Path(__file__).parents[2]
# A run of the tests' own, so that tuning the real one changes no test.
RUN = {"datasets": ["digits"], "methods": ["nearest", "quest"], "bits": ["w8a8", "w4a8", "w4a4"], "seeds": [0]}
PROTOCOL = {
    "title": "digits",
    "model": "data/models/digits/denoiser.safetensors",
    "extractor": "data/models/digits/extractor.safetensors",
    "real_images": "digits",
    "image_size": 16,
    "image_channels": 1,
    "sampler": {"steps": 20},
    "calibration": {"steps": 20, "samples_per_step": 64},
    "reconstruction": {"iterations": 300},
    "methods": {"quest": {"cma_epochs": 4}},
    "evaluation": {"images": 1000, "shards": 2},
    "pretrain": {"unet": {"channels": [32], "attention": [False]}, "steps": 4000},
}
COPIED = (
    *("Snakefile", "profiles", "workflow", "config", "quest", ".gitignore"),
    *("dvc.yaml", ".dvc/config", ".dvc/.gitignore", ".dvcignore"),
)
MODEL_BYTES = 1_500_000  # more than Snakemake compares unless it is told


@dataclass(frozen=True)
class Project:
    """A scratch project in ``root`` whose commands are those of ``bin``."""

    root: Path
    bin: Path

    def run(self, *command: str, check: bool = True, timeout: int = 240, **variables: str) -> str:
        """Run a command in the project, at most ``timeout`` seconds; its output, errors included."""
        result = subprocess.run(
            command, cwd=self.root, env=self.environment(**variables), capture_output=True, text=True, timeout=timeout
        )
        output = result.stdout + result.stderr
        assert not check or result.returncode == 0, output
        return output

    def snakemake(self, *arguments: str, check: bool = True, timeout: int = 240, **variables: str) -> str:
        return self.run("snakemake", "--cores", "2", *arguments, check=check, timeout=timeout, **variables)

    def calls(self) -> set[str]:
        """The outputs of the stages that ran since the last call of this method, and how they were called."""
        file = self.root / "calls.txt"
        calls = set(file.read_text().splitlines()) if file.exists() else set()
        file.unlink(missing_ok=True)
        return calls

    def edit(self, file: str, *keys: str, value: Any) -> None:
        """Set a key of a YAML file."""
        path = self.root / file
        content = yaml.safe_load(path.read_text())
        section = content
        for key in keys[:-1]:
            section = section.setdefault(key, {})
        section[keys[-1]] = value
        path.write_text(yaml.safe_dump(content, sort_keys=False))

    def environment(self, **variables: str) -> dict[str, str]:
        own = {
            "PATH": os.pathsep.join([str(self.bin), os.environ["PATH"]]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "XDG_CACHE_HOME": str(self.root.parent / "cache"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            **{f"GIT_{who}_{what}": "test@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }
        return {**os.environ, **own, **variables}


class Plan:
    """The jobs that a run would have, of rules that do something."""

    def __init__(self, project: Project, config: dict[str, Any] | None = None, targets: tuple[str, ...] = ()) -> None:
        output = OutputSettings(dryrun=True, quiet={Quietness.ALL})
        with SnakemakeApi(output) as api:
            workflow = api.workflow(
                resource_settings=ResourceSettings(cores=2),
                config_settings=ConfigSettings(config=config or {}),
                snakefile=project.root / "Snakefile",
                workdir=project.root,
            )
            settings = DAGSettings(targets=set(targets), max_checksum_file_size=sys.maxsize)  # as in profiles/default
            workflow.dag(settings).execute_workflow(executor="dryrun")
            dag: Any = workflow._workflow.dag
            self.jobs = [job for job in dag.needrun_jobs(exclude_finished=False) if not job.rule.norun]

    def rules(self) -> dict[str, int]:
        return dict(Counter(job.rule.name for job in self.jobs))

    def job(self, output: str) -> Any:
        return next(job for job in self.jobs if output in map(str, job.output))

    def settings(self, output: str) -> dict[str, Any]:
        return json.loads(self.job(output).params.settings)


def configured(project: Project) -> Project:
    for file, content in (("config.yaml", RUN), ("datasets/digits.yaml", PROTOCOL)):
        (project.root / "config" / file).write_text(yaml.safe_dump(content))
    return project


def scratch(root: Path, programs: Path) -> Project:
    """This project's workflow with stub models in ``root``."""
    for name in COPIED:
        source, target = ROOT / name, root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, target)
    models = root / "data" / "models" / "digits"
    models.mkdir(parents=True)
    for name in ("denoiser", "extractor"):
        (models / f"{name}.safetensors").write_text(name.ljust(MODEL_BYTES))
    return Project(root, programs)
