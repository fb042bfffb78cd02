"""The axes of a run: `config/config.yaml`, or another file beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, model_validator

from quest import paths
from quest.config.dataset import DatasetSettings, load_dataset
from quest.config.evaluation import FAKE
from quest.config.methods import METHODS, base_method, python_name
from quest.config.policies import clash
from quest.config.quantizer import FACTORED
from quest.config.reading import named_files, read, unknown, validate
from quest.config.values import FULL_PRECISION, UNQUANTIZED, Bits, Cell, ConfigError, Positive, Settings, width
from quest.config.variants import MethodVariant, load_variants, of_cell

CONFIG_FILE = paths.CONFIG / "config.yaml"
_NO_SUITES = ("variants", "published")  # files beside those of runs


class RunSettings(Settings):
    """The axes of a run: every combination is one cell of the tables."""

    datasets: Annotated[list[str], Field(min_length=1)] = Field(description="names of files in config/datasets")
    methods: Annotated[list[str], Field(min_length=1)] = Field(
        description="quantization methods; full precision is always added"
    )
    bits: Annotated[list[str], Field(min_length=1)] = Field(description="bit-widths, like w4a8")
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)] = Field(
        description="one whole chain (calibration to metrics) for each, unless `chains` says otherwise"
    )
    chains: Positive | None = Field(
        default=None,
        description="how many of the seeds have a chain of their own; seed number i of the others samples with the "
        "quantized models of number i mod `chains`. Default: every seed",
    )
    tables: list[str] = Field(
        default=[], description="tables of `config/published.yaml` to make too, from their own cells on the same seeds"
    )
    gpus: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="GPUs that a job asks its cluster for, where it can use one. Default: 1 if the machine that starts "
        "the run has any; on a cluster's login node, which has none, say 1 (profiles/slurm does)",
    )
    suite: str | None = Field(
        default=None,
        description="of the command line only: `snakemake --config suite=NAME` runs config/NAME.yaml",
    )

    @model_validator(mode="after")
    def _a_seed_for_each_chain(self) -> RunSettings:
        if self.chains is not None and self.chains > len(self.seeds):
            raise ValueError(f"chains is {self.chains}, more than there are seeds, {self.seeds}")
        return self

    @property
    def chain_seeds(self) -> list[int]:
        """The seeds with a chain of their own, from calibration to checkpoint."""
        return self.seeds[: self.chains]

    def chain_seed(self, seed: int) -> int:
        """The seed whose quantized models ``seed`` samples with; its own, too, where it is none of the run's."""
        if seed not in self.seeds:
            return seed
        return self.chain_seeds[self.seeds.index(seed) % len(self.chain_seeds)]


class Config(NamedTuple):
    """A validated run: its axes, the protocol of each of its datasets, and all variants of methods by name."""

    run: RunSettings
    datasets: dict[str, DatasetSettings]
    variants: dict[str, MethodVariant]

    def settings(self, dataset: str, method: str = FULL_PRECISION) -> DatasetSettings:
        """The settings of a cell: its dataset's, with what its variant overrides."""
        return of_cell(self.datasets[dataset], method, self.variants)

    def cells(self) -> Iterator[Cell]:
        """Full precision first, then every method at every bit-width."""
        yield Cell(FULL_PRECISION, str(UNQUANTIZED))
        for bits in self.run.bits:
            for method in self.run.methods:
                yield Cell(method, bits)


def load(source: Path | dict[str, Any] = CONFIG_FILE, folder: Path | None = None) -> Config:
    """Read and validate a run.

    source: the run's YAML file, or its content (Snakemake's ``config``).
    folder: where ``datasets/`` lies; beside the file, or ``config/``.
    Raises ConfigError.
    """
    folder = folder or (source.parent if isinstance(source, Path) else paths.CONFIG)
    name = str(source) if isinstance(source, Path) else _origin(source, folder)
    run = validate(RunSettings, read(source) if isinstance(source, Path) else source, name)
    variants = load_variants(folder)
    known = named_files(folder / "datasets", "a dataset")
    for method in run.methods:
        if method not in METHODS and method not in variants:
            raise ConfigError(f"{name}: methods: {unknown(method, [*METHODS, *variants])}")
    for bits in run.bits:
        try:
            parsed = Bits.parse(bits)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None
        if parsed == UNQUANTIZED:
            raise ConfigError(
                f"{name}: bits: w32a32 is full precision, which every table has already; expected bits from 2 to 8"
            )
    for axis in ("datasets", "methods", "bits", "seeds"):
        values = getattr(run, axis)
        if len(set(values)) < len(values):
            raise ConfigError(f"{name}: {axis}: {values} names a value twice")
    if unknown_datasets := [dataset for dataset in run.datasets if dataset not in known]:
        raise ConfigError(
            f"{name}: datasets: {unknown(unknown_datasets[0], known)} (the files of {folder / 'datasets'})"
        )
    config = Config(run, {dataset: load_dataset(dataset, folder) for dataset in run.datasets}, variants)
    for dataset, settings in config.datasets.items():
        counts = {"calibration.steps": settings.calibration.steps}
        counts |= {
            f"methods.{method}.sets": config.settings(dataset, method).method(method).sets for method in run.methods
        }
        for key, count in counts.items():  # also those that the protocol leaves at their defaults
            if settings.sampler.steps % count:
                where = f"{folder}/datasets/{dataset}.yaml: {key}"
                raise ConfigError(f"{where} is {count}, which does not divide sampler.steps = {settings.sampler.steps}")
        _require_one_policy(f"{folder}/datasets/{dataset}.yaml", config, dataset)
        for cell in config.cells():
            _require_integers(f"{folder}/datasets/{dataset}.yaml", config.settings(dataset, cell.method), cell)
    return config


def _require_one_policy(file: str, config: Config, dataset: str) -> None:
    """Raise ConfigError where methods of a run, which share the columns of a table, have different policies."""
    policies = {method: config.settings(dataset, method).method(method).policy for method in config.run.methods}
    if found := clash(policies):
        first, other = found
        raise ConfigError(
            f"{file}: the policy of {other} is {policies[other]}, but that of {first} {policies[first]}; expected one "
            f"policy for all methods of a run, or variants that say theirs, like {base_method(other)}+everything"
        )


def _require_integers(file: str, settings: DatasetSettings, cell: Cell) -> None:
    """Raise ConfigError where a cell is to be drawn by integer kernels, but its grids are none that these compute."""
    if settings.evaluation.backend == FAKE or cell.method == FULL_PRECISION:
        return
    quantizer, of_bits = settings.quantizer, width(Bits.parse(cell.bits).activation)
    own = getattr(settings.method(cell.method), "granularity", None)  # a method may have its own
    granularity = quantizer.activation_granularity if own is None else own
    key = "quantizer.activation_granularity" if own is None else f"methods.{python_name(cell.method)}.granularity"
    shared = FACTORED if of_bits == "4" else ("per_tensor",)  # shifted, codes of 8 bits fit no byte
    fine = {
        f"{key}.{of_bits}": (granularity[of_bits], shared),
        "quantizer.weight_group": (quantizer.weight_group, (None,)),
        "quantizer.split_shortcuts": (quantizer.split_shortcuts, (False,)),
    }
    for key, (found, expected) in fine.items():
        if found not in expected:
            raise ConfigError(
                f"{file}: evaluation.backend is integer, but {key} of {cell.method} {cell.bits} is {found}, "
                "whose scales do not factor out of a sum of integers; expected "
                f"{' or '.join(map(str, expected))}, or evaluation.backend fake"
            )


def require_models(config: Config, folder: Path = paths.CONFIG) -> None:
    """Raise ConfigError for every dataset of a run whose model is not there and which nothing makes.

    folder: where ``datasets/`` lies, for the message. Paths in a protocol are seen from the project's folder.
    """
    faults = [
        model_missing(dataset, settings, folder)
        for dataset, settings in config.datasets.items()
        if not (settings.source or settings.pretrain or settings.model.is_file())
    ]
    if faults:
        raise ConfigError("\n".join(faults))


def model_missing(dataset: str, settings: DatasetSettings, folder: Path = paths.CONFIG) -> str:
    """The sentence for a dataset whose model is not there and which nothing makes."""
    return (
        f"{folder}/datasets/{dataset}.yaml: model: {settings.model} is not there, and neither source nor pretrain says "
        "how to make it; put it there or set one of them"
    )


def run_file(suite: str | None = None, folder: Path = paths.CONFIG) -> Path:
    """The file of the run called ``suite``, like paper; of the default run without. Raises ConfigError."""
    if suite is None:
        return folder / CONFIG_FILE.name
    files = {name: file for name, file in named_files(folder, "a suite").items() if name not in _NO_SUITES}
    if str(suite) not in files:
        raise ConfigError(f"--config: suite: {unknown(str(suite), files)} (the files of {folder})")
    return files[str(suite)]


def _origin(content: dict[str, Any], folder: Path) -> str:
    """Where Snakemake has ``content`` from: the file of its suite, and the keys that its option --config changes."""
    file = run_file(content.get("suite"), folder)
    written = read(file) if file.exists() else {}
    changed = [key for key in content if key != "suite" and key in RunSettings.model_fields]
    changed = [key for key in changed if not isinstance(written, dict) or written.get(key) != content[key]]
    return f"{file} with --config {' '.join(changed)}" if changed else str(file)
