"""The files and settings of a run's cells: what the rules ask, as plain functions of the configuration.

A cell is a method at a bit-width. What takes wildcards takes Snakemake's, or anything with the same attributes; nothing
here knows Snakemake.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from quest import methods, paths
from quest.config.dataset import DatasetSettings
from quest.config.method import GROUPINGS, Rounding
from quest.config.methods import METHODS, python_name
from quest.config.reading import unknown
from quest.config.run import Config, model_missing
from quest.config.values import FULL_PRECISION, UNQUANTIZED, Bits, Cell, ConfigError
from quest.report import convergence
from quest.report.published import Published
from quest.studies import STUDIES
from workflow.provenance import code_hash, sections_of

MODEL = "data/models/{dataset}/denoiser.safetensors"
EXTRACTOR = "data/models/{dataset}/extractor.safetensors"
TRADEOFF = "results/figures/{dataset}{of_suite}/tradeoff.png"
FIGURES = (paths.SAMPLE_GRID, paths.COMPARISON, TRADEOFF)
CLIP = "data/models/{dataset}/clip.safetensors"

Wildcards = Any  # Snakemake's, or anything with these attributes and `get`
Input = Callable[[Wildcards], "str | list[str]"]


class Cells:
    """The cells of a run. root: the project's folder. Raises ConfigError for a table that is not published."""

    def __init__(self, config: Config, published: Published, root: Path):
        self.config, self.published, self._root = config, published, root
        self.run, self.datasets = config.run, config.datasets
        self.of_suite = paths.of_suite(self.run.suite)
        self.all = list(config.cells())
        self.quantized = [cell for cell in self.all if cell.method != FULL_PRECISION]
        self.embedded = [name for name, settings in self.datasets.items() if settings.pretrain]
        self.imported = [name for name, settings in self.datasets.items() if settings.source]
        self.trained_whole = [name for name in self.embedded if self._pretrain(name).first_stage is None]
        self.sharing = [name for name in self.embedded if name not in self.trained_whole]
        self.of_prompts = [name for name in self.embedded if self._pretrain(name).clip]
        made = {paths.fill(file, dataset=name) for name in self.trained_whole for file in (MODEL, EXTRACTOR)}
        self.brought = {
            file: how
            for settings in self.datasets.values()
            for file, how in _brought(settings).items()
            if file not in made
        }
        for table in self.run.tables:
            published.table(table)
        self._hashes: dict[tuple[str, ...], str] = {}
        self._protocols: dict[tuple[str, str], tuple[DatasetSettings, dict[str, Any]]] = {}

    # Files of cells

    def files(
        self,
        pattern: str,
        dataset: str,
        cells: Iterable[Cell],
        seeds: Iterable[int | str] | None = None,
        shards: Iterable[int] | None = None,
    ) -> list[str]:
        """The files of ``cells`` in ``pattern``: of every seed of the run and every shard of the dataset unless given.
        Of learned rounding, those of cells that start from it; one each where cells share them."""
        shards = range(self.datasets[dataset].evaluation.shards) if shards is None else list(shards)
        found = []
        for cell in cells:
            rounding = self.rounding(dataset, cell.method)
            if rounding is None and pattern == paths.RECONSTRUCTION:
                continue
            values = {
                "dataset": dataset,
                "method": cell.method,
                "bits": cell.bits,
                "weight_bits": Bits.parse(cell.bits).weight,
                **(rounding._asdict() if rounding else {}),
                "of_suite": self.of_suite,
            }
            for seed in self.run.seeds if seeds is None else seeds:
                found += [paths.fill(pattern, **values, seed=seed, shard=shard) for shard in shards]
        return list(dict.fromkeys(found))

    def everywhere(
        self, pattern: str, cells: Iterable[Cell] | None = None, seeds: Iterable[int] | None = None
    ) -> list[str]:
        """The files of ``cells`` (those of full precision too unless given) of every dataset of the run."""
        cells = self.all if cells is None else list(cells)
        return [file for dataset in self.run.datasets for file in self.files(pattern, dataset, cells, seeds)]

    def of_chains(self, pattern: str) -> list[str]:
        """The files of quantized cells on the seeds that have a chain of their own."""
        return self.everywhere(pattern, self.quantized, self.run.chain_seeds)

    def targets(self) -> dict[str, list[str]]:
        """What each stage makes for the run, by its rule."""
        analyses = [
            f"{paths.fill(paths.ANALYSIS, dataset=dataset, study=study)}.{ending}"
            for dataset in self.run.datasets
            for study, about in STUDIES.items()
            if not about.by_name
            for ending in ("csv", "png", "svg")
        ]
        return {
            "pretrain_clip": [paths.fill(CLIP, dataset=name) for name in self.of_prompts],
            "pretrain": [paths.fill(file, dataset=name) for name in self.trained_whole for file in (MODEL, EXTRACTOR)],
            "pretrain_denoiser": [paths.fill(MODEL, dataset=name) for name in self.sharing],
            "import_model": [paths.fill(MODEL, dataset=name) for name in self.imported],
            "reference": self.everywhere(paths.REFERENCE),
            "calibrate": self.of_chains(paths.CALIBRATION),
            "reconstruct": self.of_chains(paths.RECONSTRUCTION),
            "finetune": self.of_chains(paths.CHECKPOINT),
            "sample": self.everywhere(paths.SAMPLES),
            "preview": self.previews(),
            "measure": self.everywhere(paths.METRICS),
            "score": self.everywhere(paths.SCORES),
            "table": self.everywhere(paths.TABLE),
            "write_table": [*self.everywhere(paths.TABLE_CSV), *self.everywhere(paths.TABLE_MARKDOWN)],
            "figures": [file for picture in FIGURES for file in self.everywhere(picture)],
            "track": self.everywhere(paths.TRACKING),
            "paper": self._tables(paths.PAPER_MARKDOWN),
            "track_paper": self._tables(paths.PAPER_TRACKING),
            "analyse": analyses,
        }

    def previews(self, dataset: str | None = None) -> list[str]:
        """The previews of every cell on the first seed, of one dataset or of all."""
        names = self.run.datasets if dataset is None else [dataset]
        return [file for name in names for file in self.files(paths.PREVIEW, name, self.all, self.run.seeds[:1])]

    def _tables(self, pattern: str) -> list[str]:
        """The files of the papers' tables that the run asks for, of all its datasets."""
        return [
            paths.fill(pattern, dataset=dataset, table=table)
            for dataset in self.run.datasets
            for table in self.run.tables
        ]

    # Inputs of rules

    def rounding(self, dataset: str, method: str) -> Rounding | None:
        """The learned rounding that the dataset's cells of a method start from, or None."""
        if method == FULL_PRECISION:
            return None
        return methods.starts_from(method, self._protocol(dataset, method)[0].method(method))

    def model(self, wildcards: Wildcards) -> str:
        """The full-precision model. Raises ConfigError where it is not there and nothing makes it."""
        settings = self.datasets[wildcards.dataset]
        if not (settings.source or settings.pretrain or (self._root / settings.model).is_file()):
            raise ConfigError(model_missing(wildcards.dataset, settings))
        return str(settings.model)

    def extractor(self, wildcards: Wildcards) -> str:
        """The feature extractor of the metrics."""
        return str(self.datasets[wildcards.dataset].extractor)

    def architecture(self, wildcards: Wildcards) -> list[str]:
        """The file of hyper-parameters of the dataset's checkpoint, where its source is one."""
        return _given(self.datasets[wildcards.dataset].architecture)

    def reference_batch(self, wildcards: Wildcards) -> list[str]:
        """The published batch that the dataset is compared with, if it is not with images of its own."""
        return _given(self.datasets[wildcards.dataset].reference_batch)

    def prompts(self, wildcards: Wildcards) -> list[str]:
        """The prompts that the dataset's images are drawn for, if they are drawn for any."""
        condition = self.datasets[wildcards.dataset].condition
        return _given(condition and condition.prompts)

    def text_encoder(self, wildcards: Wildcards) -> list[str]:
        """The CLIP artifact that conditions an embedded model of prompts."""
        return [paths.fill(CLIP, dataset=wildcards.dataset)] if wildcards.dataset in self.of_prompts else []

    def first_stage(self, wildcards: Wildcards) -> str:
        """The model whose first stage a denoiser is trained on."""
        return str(self._pretrain(wildcards.dataset).first_stage)

    def clip_model(self, wildcards: Wildcards) -> list[str]:
        """The CLIP model of the score, where it is a file."""
        clip = self.datasets[wildcards.dataset].evaluation.clip
        return _given(clip.model if clip is not None and clip.model.endswith(".safetensors") else None)

    def clip_prompts(self, wildcards: Wildcards) -> list[str]:
        """The prompts of the CLIP score, for datasets that have one."""
        clip = self.datasets[wildcards.dataset].evaluation.clip
        return _given(clip and clip.prompts)

    def reconstruction(self, wildcards: Wildcards) -> list[str]:
        """The learned rounding that the cell starts from, if it does."""
        cell = Cell(wildcards.method, wildcards.bits)
        return self.files(paths.RECONSTRUCTION, wildcards.dataset, [cell], [wildcards.seed], [0])

    def checkpoint(self, wildcards: Wildcards) -> list[str]:
        """The checkpoint that the cell samples with, of the seed whose chain it shares; full precision has none."""
        if wildcards.method == FULL_PRECISION:
            return []
        cell, seed = Cell(wildcards.method, wildcards.bits), self.run.chain_seed(int(wildcards.seed))
        return self.files(paths.CHECKPOINT, wildcards.dataset, [cell], [seed], [0])

    def samples(self, wildcards: Wildcards) -> list[str]:
        """All shards of the cell."""
        return self.files(paths.SAMPLES, wildcards.dataset, [Cell(wildcards.method, wildcards.bits)], [wildcards.seed])

    def full_precision(self, wildcards: Wildcards) -> list[str]:
        """All shards of full precision under the cell's seed."""
        return self.files(paths.SAMPLES, wildcards.dataset, [Cell(FULL_PRECISION, str(UNQUANTIZED))], [wildcards.seed])

    def metrics(self, wildcards: Wildcards) -> list[str]:
        """The metrics of every cell of the dataset."""
        return self.files(paths.METRICS, wildcards.dataset, self.all, shards=[0])

    def cells_of_table(self, wildcards: Wildcards) -> list[str]:
        """The metrics of the cells that a table compares; none where the dataset's model cannot be had.

        Raises ConfigError for an unknown table or dataset."""
        dataset = wildcards.dataset
        cells = self.published.table(wildcards.table).cells()
        if dataset not in self.datasets:
            raise ConfigError(f"dataset: {unknown(dataset, self.datasets)} (the datasets of the run)")
        if dataset not in self.embedded and not (self._root / self.datasets[dataset].model).exists():
            return []
        return self.files(paths.METRICS, dataset, cells, shards=[0])

    def studied(self, name: str) -> Input:
        """An input: the files that a study reads under ``name``, if it does: of QuEST at the bits that it studies."""

        def files(wildcards: Wildcards) -> str | list[str]:
            study = STUDIES[wildcards.study]
            if name not in study.files:
                return []
            dataset, seed = wildcards.dataset, self.run.seeds[0]
            bits = self.datasets[dataset].analysis.bits
            cell = {"dataset": dataset, "method": "quest", "bits": bits, "seed": seed}
            rounding = self.rounding(dataset, "quest")
            if rounding is None:
                raise ConfigError(
                    f"config/datasets/{dataset}.yaml: methods.quest.rounding: found nearest, which the study "
                    f"{wildcards.study} has nothing to look at of; expected learned"
                )
            widths = dict.fromkeys((8, Bits.parse(bits).weight))
            if name == "model":
                return self.model(wildcards)
            if name == "calibration":
                return paths.fill(paths.CALIBRATION, **cell)
            if name == "reconstruction":
                weight_bits = study.weight_bits or Bits.parse(bits).weight
                return paths.fill(paths.RECONSTRUCTION, **cell, **rounding._asdict(), weight_bits=weight_bits)
            if name == "reconstructions":
                return [
                    paths.fill(paths.RECONSTRUCTION, **cell, **each._asdict(), weight_bits=width)
                    for width in widths
                    for each in (Rounding(grouping, rounding.policy) for grouping in GROUPINGS)
                ]
            if name == "checkpoint":
                return paths.fill(paths.CHECKPOINT, **cell)
            if name == "checkpoints":
                cells = [Cell(method, bits) for method in self.run.methods]
                return self.files(paths.CHECKPOINT, dataset, cells, [seed], [0])
            return self.previews(dataset)

        return files

    # Parameters of rules

    def settings(self, stage: str) -> Callable[[Wildcards], str]:
        """A parameter: the settings of the cell that a stage depends on, as JSON; what a change of the settings reruns.

        Which those are the stage itself says (``SECTIONS`` of its file): sections ("sampler"), or single keys of them
        ("evaluation.images"), wildcards filled in; of a study, `quest.studies` does.
        """

        def given(wildcards: Wildcards) -> str:
            sections = STUDIES[wildcards.study].sections if stage == "analyse" else sections_of(self._root, stage)
            _, whole = self._protocol(wildcards.dataset, wildcards.get("method", FULL_PRECISION))
            # What every protocol must have. The real title is a mere name: changing it reruns nothing.
            chosen = {key: whole[key] for key in ("model", "extractor", "image_size", "image_channels")}
            chosen |= {"title": wildcards.dataset}
            for key in sections:
                section, _, name = _in_python(key, wildcards).partition(".")
                if name:
                    chosen[section] = {**chosen.get(section, {}), name: whole[section][name]}
                else:
                    chosen[section] = whole[section]
            return json.dumps(chosen, sort_keys=True)

        return given

    def code(self, stage: str, *more: str) -> Callable[[Wildcards], str]:
        """A parameter: the hash of the library code that a stage runs; what a change of the code reruns.

        more: modules that the stage imports by name, wildcards filled in.
        """

        def hashed(wildcards: Wildcards) -> str:
            names = (f"quest.stages.{stage}", *(_in_python(name, wildcards) for name in more))
            if names not in self._hashes:
                self._hashes[names] = code_hash(self._root, *names)
            return self._hashes[names]

        return hashed

    def convergence(self, wildcards: Wildcards) -> str:
        """A parameter: the option with what the study `convergence` found of the dataset's learned rounding, as its
        settings are now; empty where it was not made. No input, for a table does not ask for so long a study.

        Raises ConfigError for a damaged file."""
        dataset = wildcards.dataset
        file = self._root / f"{paths.fill(paths.ANALYSIS, dataset=dataset, study='convergence')}.csv"
        rounding = self.rounding(dataset, "quest")
        if rounding is None or not file.is_file():
            return ""
        found = convergence.record(file, rounding)
        if found["iterations"] != self.datasets[dataset].reconstruction.iterations:
            return ""
        return f"--convergence {shlex.quote(json.dumps(found, sort_keys=True))}"

    def sampling_code(self, wildcards: Wildcards) -> str:
        """A parameter: the hash of the code that a cell is sampled by: the stage's, and that of the cell's backend."""
        settings, _ = self._protocol(wildcards.dataset, wildcards.method)
        return self.code("sample", f"quest.deploy.backends.{settings.evaluation.backend}")(wildcards)

    def _protocol(self, dataset: str, method: str) -> tuple[DatasetSettings, dict[str, Any]]:
        """The settings of a cell, and the same as JSON; made once, for a plan asks for them job by job."""
        if (dataset, method) not in self._protocols:
            settings = self.config.settings(dataset, method)
            self._protocols[dataset, method] = settings, settings.model_dump(mode="json")
        return self._protocols[dataset, method]

    def _pretrain(self, dataset: str) -> Any:
        return self.datasets[dataset].pretrain


# Modules that stages find by name, for `Cells.code`.
METHOD = "quest.methods.{method}"
STUDY = "quest.studies.{study}"
TITLES = tuple(f"quest.config.methods.{python_name(method)}" for method in METHODS)


def with_numbers(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run as Snakemake has it, whose seeds are numbers: of a list on the command line, `--config seeds=[0,1]`, it
    leaves the items as they were written."""
    seeds = config.get("seeds")
    if not isinstance(seeds, list):
        return dict(config)
    return {**config, "seeds": [int(s) if isinstance(s, str) and s.isdecimal() else s for s in seeds]}


def option(name: str) -> Callable[[Wildcards, Mapping[str, Any]], str]:
    """A parameter: `--name FILE` for each input file of that name, quoted; empty where the cell has none."""

    def flags(wildcards: Wildcards, input: Any) -> str:
        return _flags(name, input.get(name.replace("-", "_")))

    return flags


def study_options(wildcards: Wildcards, input: Any) -> str:
    """`--NAME FILE` for each file that the study reads; --checkpoint for each of `checkpoints`."""
    return " ".join(_flags(name.removesuffix("s"), input[name]) for name in STUDIES[wildcards.study].files)


def _flags(name: str, files: str | Sequence[str]) -> str:
    return " ".join(f"--{name} {shlex.quote(file)}" for file in ([files] if isinstance(files, str) else files))


def _brought(settings: DatasetSettings) -> dict[str, str]:
    """The files that a dataset needs and nothing here makes, and how they come."""
    clip, condition = settings.evaluation.clip, settings.condition
    prompts = "put a text file there, one prompt a line; `quest prompts` makes one of captions"
    files = {
        settings.reference_batch: "put the reference batch there; the protocol in config/datasets says how to get it",
        condition and condition.prompts: prompts,
        clip and clip.prompts: prompts,
    }
    if settings.pretrain is not None and settings.pretrain.first_stage is not None:
        shared = "another dataset's run makes it, and `dvc pull data/models` fetches it"
        files |= {settings.pretrain.first_stage: shared, settings.extractor: shared}
    if settings.extractor.suffix == ".pth":
        files[settings.extractor] = "put the weights of that name there; docs/metrics.md says where they are published"
    return {str(file): how for file, how in files.items() if file is not None}


def _given(file: Path | str | None) -> list[str]:
    return [] if file is None else [str(file)]


def _in_python(pattern: str, wildcards: Wildcards) -> str:
    """``pattern`` with its wildcards filled in, a method by its name in Python: q_diffusion for q-diffusion."""
    return pattern.format(**{**wildcards, "method": python_name(wildcards.get("method", ""))})
