"""`quest estimate`: what a run will cost on this machine."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import click


@click.command()
@click.argument("run", required=False)
@click.option("--all", "every", is_flag=True, help="Every job of the run, not only those that are missing or stale.")
@click.option("--cores", type=click.IntRange(min=1), help="Cores of the run; default: profiles/default, all of them.")
@click.option("--measure", is_flag=True, help="Measure this machine anew.")
@click.option(
    "--check",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    is_flag=False,
    flag_value=Path(),
    help="Compare with what Snakemake recorded, in this folder or another.",
)
@click.option(
    "--device", "name", default="auto", show_default=True, help="cpu, cuda, …; auto takes a GPU if there is one."
)
@click.option("--json", "as_json", is_flag=True, help="For programs: seconds and bytes.")
def estimate(
    run: str | None, every: bool, cores: int | None, measure: bool, check: Path | None, name: str, as_json: bool
) -> None:
    """Hours, memory and disk of RUN before it runs: a suite (a file of config/), a dataset, or the default run.

    This machine's speed is measured when it is missing, which takes about a minute, and kept in data/speed.json.
    """
    os.environ["TQDM_DISABLE"] = "1"  # the bars of the steps that are timed; read when tqdm is imported
    import torch

    from quest.device import resolve
    from quest.estimate import costs, plan, report, speed
    from quest.estimate.schedule import schedule

    device = resolve(name)
    logging.getLogger("quest.learning").setLevel(logging.WARNING)
    torch.set_num_threads(speed.THREADS)
    jobs = plan.ask(run, every=every or check is not None)
    here = speed.Speed(speed.FILE, device)
    if measure:
        here.forget()
    estimator = costs.prepare(jobs, here)
    found = [estimator.cost(job) for job in jobs]
    if check is not None:
        click.echo(report.check(jobs, found, check))
        return
    cores = cores or plan.cores()
    memory = [cost.memory for cost in found]
    whole = schedule(jobs, [cost.seconds for cost in found], memory, cores, plan.gpus())
    show = report.as_json if as_json else report.table
    shown = show(report.by_stage(jobs, found), whole, cores, here.machine)
    click.echo(json.dumps(shown, indent=1) if as_json else shown)
