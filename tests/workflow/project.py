"""A scratch copy of the workflow: real commands in it, and plans of it made in this process."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, Quietness, ResourceSettings


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
            workflow.dag(DAGSettings(targets=set(targets))).execute_workflow(executor="dryrun")
            dag: Any = workflow._workflow.dag
            self.jobs = [job for job in dag.needrun_jobs(exclude_finished=False) if not job.rule.norun]

    def rules(self) -> dict[str, int]:
        return dict(Counter(job.rule.name for job in self.jobs))

    def job(self, output: str) -> Any:
        return next(job for job in self.jobs if output in map(str, job.output))

    def settings(self, output: str) -> dict[str, Any]:
        return json.loads(self.job(output).params.settings)
