"""The stages of the pipeline: a file a rule, named like it, which reads artifacts, calls the library and writes one.

A stage is a module with ``run``, whose arguments are those of its command, and ``PARAMETERS``, which declares them; its
command `quest <stage>` is made of these two. The first line of its docstring is the command's help. ``SECTIONS`` names
what of a dataset's protocol it depends on: what its rule passes, and so what reruns it.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import click

from quest.config.dataset import DatasetSettings, load_dataset
from quest.config.reading import validate
from quest.config.values import FULL_PRECISION
from quest.config.variants import load_variants, of_cell

FILE = click.Path(path_type=Path, dir_okay=False)


def file(name: str, help: str | None = None, *, required: bool = True, many: bool = False) -> click.Option:
    """The option ``--name FILE``; of many it is repeated. ``run`` gets a path, or a tuple of paths, as ``name``."""
    return click.Option([f"--{name}"], type=FILE, required=required, multiple=many, help=help)


def files(name: str, required: bool = True) -> click.Argument:
    """Any number of files, one after another."""
    return click.Argument([name], type=FILE, nargs=-1, required=required)


def _resolved(_context: Any, _parameter: Any, name: str) -> Any:
    from quest.device import resolve

    return resolve(name)


DATASET = click.Argument(["dataset"])
PROTOCOL = (
    DATASET,
    click.Option(["--settings"], help="The dataset's protocol as JSON; default: config/datasets/DATASET.yaml."),
)
"""A dataset and its protocol: ``run`` gets ``dataset`` and ``settings``, of the cell where there is a method."""
SEED = click.Option(
    ["--seed"], type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the whole chain."
)
MODEL = file("model", "Full-precision model.")
OUTPUT = file("output", "File to write.")
DEVICE = click.Option(
    ["--device"],
    default="auto",
    show_default=True,
    callback=_resolved,
    help="cpu, cuda, cuda:1, …; auto takes a GPU when there is one.",
)
"""``run`` gets a torch.device."""
ALLOW_CPU = click.Option(["--allow-cpu"], is_flag=True, help="Train even without a GPU (hours).")
CELL = (
    MODEL,
    click.Option(["--method"], required=True, help="A method, or a variant of one (config/variants.yaml)."),
    click.Option(["--bits"], required=True, help="Like w4a8."),
    SEED,
    file("calibration"),
    file("reconstruction", "Learned rounding; for the methods that start from it.", required=False),
)
"""What a method quantizes a model by."""


def command(name: str) -> click.Command:
    """The command of a stage: its ``run``, called with what its ``PARAMETERS`` declare."""
    module = importlib.import_module(f"quest.stages.{name.replace('-', '_')}")

    def run(**given: Any) -> None:
        if "settings" in given:
            given["settings"] = protocol(given["dataset"], given["settings"], given.get("method", FULL_PRECISION))
        module.run(**given)

    return click.Command(name, params=list(module.PARAMETERS), callback=run, help=module.__doc__)


def protocol(dataset: str, given: str | None, method: str = FULL_PRECISION) -> DatasetSettings:
    """The settings of a cell; ``given`` is the JSON that a rule passes (the parts that it depends on)."""
    if given is None:
        return of_cell(load_dataset(dataset), method, load_variants())
    return validate(DatasetSettings, json.loads(given), "--settings")
