# What the rules share: the validated configuration and the cells of the run (workflow/cells.py).
import os
import re
import shutil
import sys
from pathlib import Path

import snakemake.exceptions
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from quest import methods, paths
from quest.artifacts import ArtifactError
from quest.cli import ending
from quest.config.method import GROUPINGS
from quest.config.methods import METHODS
from quest.config.run import load
from quest.config.values import FULL_PRECISION, ConfigError
from quest.report import published
from quest.studies import STUDIES
from workflow import damage, lock, machine, models, records
from workflow.cells import (
    CLIP,
    EXTRACTOR,
    FIGURES,
    METHOD,
    MODEL,
    STUDY,
    TITLES,
    TRADEOFF,
    Cells,
    option,
    study_options,
    with_numbers,
)

# Jobs run in the environment that runs Snakemake, activated or not, and report to nobody.
os.environ.update(
    PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()]),
    MLFLOW_DISABLE_TELEMETRY="true",
    DO_NOT_TRACK="1",
    **ending.run_variables(),  # jobs end when this process is killed
)

if workflow.is_main_process:
    lock.enter(Path.cwd())
# Snakemake's own says in five sentences what may be the case; here it is known.
snakemake.exceptions.LockException = lambda: WorkflowError(lock.refusal(Path.cwd()))

try:
    if unknown := records.restore(Path(workflow.basedir)):
        logger.warning(
            f"{unknown[0]}{f' and {len(unknown) - 1} more' * (len(unknown) > 1)}: there is no record of what made them; "
            "they are made again where they are wanted"
        )
    if workflow.is_main_process and not lock.others(Path.cwd()):  # a run that lives may be writing a record
        for name in records.mend(Path(workflow.basedir)):
            logger.warning(f"{name}: made again, for Snakemake's record of what it was made from is damaged")
    damage.refuse(Path(workflow.basedir))
    CELLS = Cells(load(with_numbers(config)), published.load(), Path(workflow.basedir))
except (ConfigError, ArtifactError) as error:
    raise WorkflowError(str(error)) from None

for sentence in models.not_retrained(CELLS.datasets, Path(workflow.basedir)):
    logger.warning(sentence)

TARGETS = CELLS.targets()
# GPUs that a job asks for; profiles/default says how many jobs with one there are at once.
GPU = int(shutil.which("nvidia-smi") is not None) if CELLS.run.gpus is None else CELLS.run.gpus


def machine_of_jobs():
    """This machine, where the jobs run on it; of a cluster's it is not known."""
    return None if workflow.non_local_exec else machine.name()


def memory(mib):
    """What a job asks for: so many MiB, and as many more with each try."""
    return lambda wildcards, attempt: mib * attempt


def one_of(names):
    """The wildcard constraint for any of `names`; for none, one that matches nothing."""
    return "|".join(map(re.escape, names)) or r"(?!)"


def refusing(function):
    """`function`, whose errors of the configuration end the run in one sentence."""

    def checked(wildcards):
        try:
            return function(wildcards)
        except ConfigError as error:
            raise WorkflowError(str(error)) from None

    return checked
