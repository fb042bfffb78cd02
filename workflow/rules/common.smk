# What the rules share: the validated configuration, the axes of the run, and what decides whether a result is current.
import functools
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import get_args

from snakemake.exceptions import WorkflowError

from quest import paths, published
from quest.studies import STUDIES
from quest.config import (
    FULL_PRECISION,
    METHODS,
    UNQUANTIZED,
    VARIANTS,
    Bits,
    Cell,
    ConfigError,
    Variant,
    base_method,
    load,
    unknown,
)
from workflow.provenance import code_hash

# Jobs run in the environment that runs Snakemake, activated or not, and report to nobody.
os.environ.update(
    PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()]),
    MLFLOW_DISABLE_TELEMETRY="true",
    DO_NOT_TRACK="1",
)

try:
    CONFIG = load(config)
    PUBLISHED = published.load()
    for name in CONFIG.run.tables:
        PUBLISHED.table(name)  # an unknown one is refused
except ConfigError as error:
    raise WorkflowError(str(error)) from None

RUN = CONFIG.run
OF_SUITE = paths.of_suite(RUN.suite)
CELLS = list(CONFIG.cells())
QUANTIZED = [cell for cell in CELLS if cell.method != FULL_PRECISION]
EMBEDDED = [dataset for dataset, settings in CONFIG.datasets.items() if settings.pretrain]
IMPORTED = [dataset for dataset, settings in CONFIG.datasets.items() if settings.source]
TEXT = [dataset for dataset in EMBEDDED if CONFIG.datasets[dataset].pretrain.clip]
MODEL, EXTRACTOR = "data/models/{dataset}/denoiser.safetensors", "data/models/{dataset}/extractor.safetensors"
CLIP = "data/models/{dataset}/clip.safetensors"
# The places that a job takes on the GPU, if there is one; profiles/default says how many there are.
GPU = int(shutil.which("nvidia-smi") is not None)


def one_of(names):
    """The wildcard constraint for any of `names`; for none, one that matches nothing."""
    return "|".join(map(re.escape, names)) or r"(?!)"


def brought(settings):
    """The files that a dataset needs and nothing here makes, and how they come."""
    clip, condition = settings.evaluation.clip, settings.condition
    prompts = "put a text file there, one prompt a line; `quest prompts` makes one of captions"
    files = {
        settings.reference_batch: "put the reference batch there; the protocol in config/datasets says how to get it",
        condition and condition.prompts: prompts,
        clip and clip.prompts: prompts,
    }
    if settings.extractor.suffix == ".pth":
        files[settings.extractor] = "put the weights of that name there; docs/metrics.md says where they are published"
    return {str(file): how for file, how in files.items() if file is not None}


def of_cells(pattern, dataset, cells, seeds=None, shards=None):
    """The files of `cells` in `pattern`: of every seed of the run and every shard of the dataset unless given."""
    shards = range(CONFIG.datasets[dataset].evaluation.shards) if shards is None else shards
    return [
        file
        for cell in cells
        for file in expand(
            pattern,
            dataset=dataset,
            method=cell.method,
            bits=cell.bits,
            weight_bits=Bits.parse(cell.bits).weight,
            variant=variant_of(dataset, cell.method) or "none",
            seed=RUN.seeds if seeds is None else seeds,
            of_suite=OF_SUITE,
            shard=shards,
        )
    ]


def everywhere(pattern, cells=QUANTIZED, seeds=None):
    """The files of `cells` of every dataset; one each where cells share them."""
    return list(dict.fromkeys(file for dataset in RUN.datasets for file in of_cells(pattern, dataset, cells, seeds)))


def variant_of(dataset, method):
    """The variant of learned rounding that the dataset's cells of a method start from, or None."""
    if method == FULL_PRECISION:
        return None
    return CONFIG.settings(dataset, method).method(method).starts_from


def model(wildcards):
    return str(CONFIG.datasets[wildcards.dataset].model)


def architecture(wildcards):
    """The file of hyper-parameters of the dataset's checkpoint, where its source is one."""
    file = CONFIG.datasets[wildcards.dataset].architecture
    return [] if file is None else str(file)


def extractor(wildcards):
    return str(CONFIG.datasets[wildcards.dataset].extractor)


def reference_batch(wildcards):
    """The published batch that the dataset is compared with, if it is not with images of its own."""
    batch = CONFIG.datasets[wildcards.dataset].reference_batch
    return [] if batch is None else str(batch)


def prompts(wildcards):
    """The prompts that the dataset's images are drawn for, if they are drawn for any."""
    condition = CONFIG.datasets[wildcards.dataset].condition
    return [] if condition is None or condition.prompts is None else str(condition.prompts)


def text_encoder(wildcards):
    """The CLIP artifact that conditions an embedded model of prompts; that it was pulled later than the model says nothing."""
    return ancient(expand(CLIP, dataset=wildcards.dataset)) if wildcards.dataset in TEXT else []


def clip_model(wildcards):
    """The CLIP model of the score, where it is a file."""
    clip = CONFIG.datasets[wildcards.dataset].evaluation.clip
    return [] if clip is None or not clip.model.endswith(".safetensors") else clip.model


def clip_prompts(wildcards):
    """The prompts of the CLIP score, for datasets that have one."""
    clip = CONFIG.datasets[wildcards.dataset].evaluation.clip
    return [] if clip is None else str(clip.prompts)


def reconstruction(wildcards):
    """The learned rounding that the cell starts from, if it does."""
    variant = variant_of(wildcards.dataset, wildcards.method)
    if variant is None:
        return []
    return paths.fill(
        paths.RECONSTRUCTION,
        **wildcards,
        variant=variant,
        weight_bits=Bits.parse(wildcards.bits).weight,
    )


def checkpoint_of(wildcards):
    """The low-bit checkpoint that the cell samples with, of the seed whose chain it shares; full precision has none."""
    if wildcards.method == FULL_PRECISION:
        return []
    return paths.fill(paths.CHECKPOINT, **{**wildcards, "seed": RUN.chain_seed(int(wildcards.seed))})


def shards(wildcards, method, bits):
    """All shards of a cell of the dataset, under the same seed."""
    return of_cells(paths.SAMPLES, wildcards.dataset, [Cell(method, str(bits))], [wildcards.seed])


def cells_of_table(wildcards):
    """The metrics of the cells that a table compares; none where the dataset's model cannot be had."""
    dataset = wildcards.dataset
    try:
        cells = PUBLISHED.table(wildcards.table).cells()
        if dataset not in CONFIG.datasets:
            raise ConfigError(f"dataset: {unknown(dataset, CONFIG.datasets)} (the datasets of the run)")
        if dataset not in EMBEDDED and not CONFIG.datasets[dataset].model.exists():
            return []
        return of_cells(paths.METRICS, dataset, cells)
    except ConfigError as error:
        raise WorkflowError(str(error)) from None


def tables_of_run(pattern):
    """The files of the tables that the run asks for, of all its datasets."""
    return expand(pattern, dataset=RUN.datasets, table=RUN.tables)


def option(name):
    """A parameter: `--name FILE` for each input file of that name; empty where the cell has none."""

    def flags(wildcards, input):
        files = input.get(name.replace("-", "_"))
        return " ".join(f"--{name} {file}" for file in ([files] if isinstance(files, str) else files))

    return flags


def studied(name):
    """The files that a study reads under `name`, if it does: of the method it is about at the bits that it studies."""

    def files(wildcards):
        if name not in STUDIES[wildcards.study].files:
            return []
        dataset, seed = wildcards.dataset, RUN.seeds[0]
        bits = CONFIG.datasets[dataset].analysis.bits
        cell = {"dataset": dataset, "method": "quest", "bits": bits, "seed": seed}
        return {
            "model": lambda: model(wildcards),
            "calibration": lambda: paths.fill(paths.CALIBRATION, **cell),
            "reconstruction": lambda: paths.fill(
                paths.RECONSTRUCTION,
                **cell,
                variant=variant_of(dataset, "quest"),
                weight_bits=STUDIES[wildcards.study].weight_bits or Bits.parse(bits).weight,
            ),
            "reconstructions": lambda: [
                paths.fill(paths.RECONSTRUCTION, **cell, variant=variant, weight_bits=weight_bits)
                for weight_bits in dict.fromkeys((8, Bits.parse(bits).weight))
                for variant in get_args(Variant)
            ],
            "checkpoint": lambda: paths.fill(paths.CHECKPOINT, **cell),
            "checkpoints": lambda: of_cells(
                paths.CHECKPOINT, dataset, [Cell(method, bits) for method in RUN.methods], [seed]
            ),
            "samples": lambda: of_cells(paths.SAMPLES, dataset, CELLS, [seed], shards=[0]),
        }[name]()

    return files


def study_options(wildcards, input):
    """`--NAME FILE` for each file that the study reads; --checkpoint for each of `checkpoints`."""
    return " ".join(
        f"--{name.removesuffix('s')} {file}"
        for name in STUDIES[wildcards.study].files
        for file in ([input[name]] if isinstance(input[name], str) else input[name])
    )


def protocol(*keys):
    """A parameter: the cell's settings under `keys` as JSON, and so what a change of the settings reruns.

    keys: sections ("sampler"), or single keys of them ("evaluation.images"); wildcards are filled in.
    """

    def settings(wildcards):
        cell = CONFIG.settings(wildcards.dataset, wildcards.get("method", FULL_PRECISION))
        whole = cell.model_dump(mode="json")
        # What every protocol must have. The real title is a mere name: changing it reruns nothing.
        given = {key: whole[key] for key in ("model", "extractor", "image_size", "image_channels")}
        given |= {"title": wildcards.dataset}
        for key in keys:
            section, _, name = in_python(key, wildcards).partition(".")
            if name:
                given.setdefault(section, {})[name] = whole[section][name]
            else:
                given[section] = whole[section]
        return json.dumps(given, sort_keys=True)

    return settings


def code(*modules):
    """A parameter: the hash of the library code that the rule runs, and so what a change of the code reruns."""

    def hashed(wildcards):
        return _code_hash(Path(workflow.basedir), *(in_python(name, wildcards) for name in modules))

    return hashed


def in_python(pattern, wildcards):
    """`pattern` with its wildcards filled in, a method by its name in Python: q_diffusion for q-diffusion."""
    return pattern.format(**{**wildcards, "method": base_method(wildcards.get("method", "")).replace("-", "_")})


_code_hash = functools.cache(code_hash)
BROUGHT = {file: how for settings in CONFIG.datasets.values() for file, how in brought(settings).items()}
