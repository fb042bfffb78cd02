"""The jobs that Snakemake plans for a run: `python -m workflow.jobs` prints them as JSON, for `quest estimate`.

A job is its rule, files, wildcards, settings, threads and GPUs, and the numbers of the jobs that it waits for.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from snakemake.api import SnakemakeApi
from snakemake.exceptions import WorkflowError
from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, Quietness, ResourceSettings

MODELS = ("pretrain_clip", "pretrain", "pretrain_denoiser", "import_model", "bring")
"""Rules whose files stay as they are once they are there."""
_MANY = 1_000  # cores: with fewer than its threads, a job would be planned with fewer
_ANY_SIZE = sys.maxsize  # bytes: content decides whether an input changed, as in profiles/default


def planned(root: Path, config: dict[str, Any] | None = None, *, every: bool = False) -> Any:
    """Snakemake's graph of the run of the project in ``root``, with ``config`` over its file's keys.

    every: as if nothing had been made yet. Raises WorkflowError.
    """
    with _quiet(), SnakemakeApi(OutputSettings(dryrun=True, quiet={Quietness.ALL})) as api:
        workflow = api.workflow(
            resource_settings=ResourceSettings(cores=_MANY),
            config_settings=ConfigSettings(config=config or {}),
            snakefile=root / "Snakefile",
            workdir=root,
        )
        settings = DAGSettings(targets={"all"}, forceall=every, max_checksum_file_size=_ANY_SIZE)
        workflow.dag(settings).execute_workflow(executor="dryrun")
        return workflow._workflow.dag  # type: ignore[union-attr]  # the one way to the jobs of a plan


def jobs(root: Path, config: dict[str, Any], *, every: bool) -> list[dict[str, Any]]:
    """The jobs that are missing or out of date, or ``every`` job of the run but those of models that are there."""
    graph = planned(root, config, every=every)
    kept = [
        job
        for job in graph.needrun_jobs(exclude_finished=False)
        if not job.rule.norun and not (job.rule.name in MODELS and all((root / str(o)).exists() for o in job.output))
    ]
    number = {job: position for position, job in enumerate(kept)}
    return [
        {
            "rule": job.rule.name,
            "outputs": list(map(str, job.output)),
            "wildcards": dict(job.wildcards_dict),
            "settings": None if (settings := job.params.get("settings")) is None else json.loads(settings),
            "benchmark": None if job.benchmark is None else str(job.benchmark),
            "threads": job.threads,
            "gpu": job.resources.get("gpu", 0),
            "needs": sorted(number[other] for other in graph.dependencies[job] if other in number),
        }
        for job in kept
    ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Within, the plan is not logged job by job, as a dry run does however quiet it was asked to be."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def main() -> None:
    """Print the jobs of the project in the current folder."""
    parser = argparse.ArgumentParser(prog="python -m workflow.jobs", description=__doc__)
    parser.add_argument("--config", type=json.loads, default={}, help="keys of the run as JSON, over its file's")
    parser.add_argument("--all", action="store_true", dest="every", help="what is there and up to date too")
    given = parser.parse_args()
    try:
        found = jobs(Path.cwd(), given.config, every=given.every)
    except WorkflowError as error:
        sys.exit(str(error))
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
