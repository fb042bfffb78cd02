"""The jobs of a run as the workflow plans them. The workflow stands above the library, so it is asked as a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from quest import paths
from quest.config.dataset import DatasetSettings
from quest.config.reading import named_files, unknown, validate
from quest.config.run import run_file
from quest.config.values import ConfigError


@dataclass(frozen=True)
class Job:
    """A job of the plan. settings: what its rule passes, as its stage reads them; None where the stage takes none.
    threads: cores that it asks for; needs: numbers of the jobs that it waits for. benchmark: where Snakemake writes
    what it took."""

    rule: str
    outputs: tuple[str, ...]
    wildcards: dict[str, str]
    settings: DatasetSettings | None = None
    threads: int = 1
    gpu: int = 0
    needs: tuple[int, ...] = ()
    benchmark: Path | None = None

    @property
    def dataset(self) -> str | None:
        """The dataset that it is of, if it is of one."""
        return self.wildcards.get("dataset")


def ask(name: str | None, *, every: bool = False, root: Path | None = None) -> list[Job]:
    """The jobs of a run that are missing or out of date; ``every`` job, whether it is there or not.

    name: a suite (a file of config/), a dataset, whose run has the default run's other axes, or None, the default run.
    A name that is both is the suite. Raises ConfigError for another name, or where the plan fails.
    """
    root = Path.cwd() if root is None else root
    if not (root / "Snakefile").is_file():
        raise ConfigError(f"{root}: no Snakefile; run from the project's folder, which has it")
    command = [sys.executable, "-m", "workflow.jobs", "--config", json.dumps(_config(name, root / paths.CONFIG))]
    ended = subprocess.run(
        [*command, "--all"] if every else command,
        cwd=root,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])},
        check=False,
    )
    if ended.returncode:
        reason = ended.stderr.strip().splitlines() or [f"ended with {ended.returncode}"]
        raise ConfigError(f"the plan of the run: {reason[-1]}")
    return [_job(each) for each in json.loads(ended.stdout.splitlines()[-1])]


def cores(root: Path | None = None) -> int:
    """Cores that a run uses: those of profiles/default, or of the machine where it says all."""
    asked = _profile(root).get("cores", "all")
    return len(os.sched_getaffinity(0)) if asked == "all" else int(asked)


def gpus(root: Path | None = None) -> int | None:
    """How many jobs with a GPU run at once; None where profiles/default does not say."""
    return _profile(root).get("resources", {}).get("gpu")


def _profile(root: Path | None) -> dict[str, Any]:
    file = (Path.cwd() if root is None else root) / "profiles/default/config.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _config(name: str | None, folder: Path) -> dict[str, Any]:
    """The keys of the run that ``name`` changes."""
    if name is None:
        return {}
    datasets = named_files(folder / "datasets", "a dataset")
    try:
        run_file(name, folder)
    except ConfigError:
        if name in datasets:
            return {"datasets": [name]}
        suites = [suite for suite in named_files(folder, "a suite") if suite not in ("variants", "published")]
        raise ConfigError(f"{unknown(name, [*suites, *datasets])} (suites and datasets of {folder})") from None
    return {"suite": name}


def _job(given: dict[str, Any]) -> Job:
    settings = given["settings"]
    return Job(
        rule=given["rule"],
        outputs=tuple(given["outputs"]),
        wildcards=given["wildcards"],
        settings=None if settings is None else validate(DatasetSettings, settings, f"settings of {given['rule']}"),
        threads=given["threads"],
        gpu=given["gpu"],
        needs=tuple(given["needs"]),
        benchmark=None if given["benchmark"] is None else Path(given["benchmark"]),
    )
