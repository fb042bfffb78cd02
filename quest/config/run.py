"""The axes of a run: `config/config.yaml`, or another file beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, model_validator

from quest import paths
from quest.config.dataset import DatasetSettings, load_dataset
from quest.config.methods import METHODS
from quest.config.reading import read, unknown, validate
from quest.config.values import FULL_PRECISION, UNQUANTIZED, Bits, Cell, ConfigError, Positive, Settings
from quest.config.variants import MethodVariant, load_variants, of_cell

CONFIG_FILE = paths.CONFIG / "config.yaml"


class RunSettings(Settings):
    """The axes of a run: every combination is one cell of the tables."""

    datasets: Annotated[list[str], Field(min_length=1)] = Field(description="names of files in config/datasets")
    methods: Annotated[list[str], Field(min_length=1)] = Field(
        description="quantization methods; full precision is always added"
    )
    bits: Annotated[list[str], Field(min_length=1)] = Field(description="bit-widths, like w4a8")
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = Field(
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
    name = str(source) if isinstance(source, Path) else str(CONFIG_FILE)
    run = validate(RunSettings, read(source) if isinstance(source, Path) else source, name)
    variants = load_variants(folder)
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
    return config


def run_file(suite: str | None = None, folder: Path = paths.CONFIG) -> Path:
    """The file of the run called ``suite``, like paper; of the default run without. Raises ConfigError."""
    if suite is None:
        return folder / CONFIG_FILE.name
    known = sorted({path.stem for path in folder.glob("*.yaml")} - {"variants", "published"})
    if suite not in known:
        raise ConfigError(f"suite: {unknown(str(suite), known)} (the files of {folder})")
    return folder / f"{suite}.yaml"
