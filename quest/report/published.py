"""``config/published.yaml``: the papers' tables and our ablations, as cells and published numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from quest.config.methods import METHODS
from quest.config.reading import named_files, read, unknown, validate
from quest.config.run import CONFIG_FILE
from quest.config.values import FULL_PRECISION, NAME, Bits, Cell, ConfigError, Settings
from quest.config.variants import load_variants

PUBLISHED_FILE = CONFIG_FILE.parent / "published.yaml"
FAILED = "N/A"  # what the papers print where no usable image came out
NOT_NAMED = "not named"  # the dataset of a row whose source does not say what it was measured on


class PaperDataset(Settings):
    """What a paper measured on."""

    stand_in: str = Field(description="the embedded dataset that stands in for it")
    dataset: str | None = Field(description="its own name in config/datasets; null where it has no protocol there")


class PaperRow(Settings):
    """One row of a table: a cell of ours, or the name of what is not here, and what was published on it."""

    dataset: str | None = Field(
        default=None,
        description="the paper's dataset, or `not named`; rows of ours, without published values, have none",
    )
    label: str | None = Field(default=None, description="name of the row; default: the cell's")
    method: str | None = None
    bits: str
    published: dict[str, float | Literal["N/A"]] = Field(default={}, description="values by column")
    mark: Literal["re-run", "uncertain"] | None = None
    source: str | None = Field(default=None, description="where it differs from the table's")
    note: str | None = None

    @property
    def cell(self) -> Cell | None:
        """The cell that is measured for this row; None for a method or bit-width that is not here."""
        if self.method is None:
            return None
        try:
            Bits.parse(self.bits)
        except ConfigError:
            return None
        return Cell(self.method, self.bits)


class PaperTable(Settings):
    """A table: its rows and columns in the order in which they are shown."""

    title: str
    source: str
    note: str | None = None
    columns: tuple[str, ...]
    rows: tuple[PaperRow, ...]

    @property
    def heading(self) -> str:
        """The title, after the number that the table has in the QuEST paper, if it has one."""
        place = re.match(r"QuEST \(ICCV 2025\), (table \d+|section [\d.]+)", self.source)
        return f"{place[1].capitalize()}: {self.title}" if place else self.title

    def cells(self) -> list[Cell]:
        """The cells to measure, each once, and full precision, which images are compared with."""
        cells = [row.cell for row in self.rows]
        return list(dict.fromkeys([Cell(FULL_PRECISION, "w32a32"), *(cell for cell in cells if cell is not None)]))


class Published(Settings):
    """The whole file."""

    datasets: dict[str, PaperDataset]
    tables: dict[str, PaperTable]

    def table(self, name: str) -> PaperTable:
        """A table by name. Raises ConfigError naming the known ones."""
        if name not in self.tables:
            raise ConfigError(f"table: {unknown(name, self.tables)}")
        return self.tables[name]


def load(file: Path = PUBLISHED_FILE) -> Published:
    """Read and validate the file, with ``variants.yaml`` and ``datasets/`` beside it.

    Raises ConfigError, naming the table, row or dataset, for a name or a published column that is none, and for
    published values without their dataset.
    """
    published = validate(Published, read(file), str(file))
    for fault in (*_faults_of_datasets(published, file.parent), *_faults_of_rows(published, file.parent)):
        raise ConfigError(f"{file}: {fault}")
    return published


def _faults_of_datasets(published: Published, folder: Path) -> Iterator[str]:
    protocols = named_files(folder / "datasets", "a dataset")
    owners: dict[str, str] = {}
    for name, place in published.datasets.items():
        if place.dataset is None:
            continue
        if place.dataset not in protocols:
            yield f"datasets.{name}: dataset: {unknown(place.dataset, protocols)}"
        if place.dataset in owners:
            yield f"datasets.{name}: dataset: {place.dataset} is that of {owners[place.dataset]} already"
        owners[place.dataset] = name


def _faults_of_rows(published: Published, folder: Path) -> Iterator[str]:
    methods = [FULL_PRECISION, *METHODS, *load_variants(folder)]
    datasets = [*published.datasets, NOT_NAMED]
    for name, table in published.tables.items():
        if not re.fullmatch(NAME, name):
            yield f"tables: {name!r}: a table is named by small letters, digits and dashes"
        for number, row in enumerate(table.rows):
            where = f"tables.{name}.rows.{number}"
            if row.method is None and row.label is None:
                yield f"{where}: neither method nor label; expected one of them"
            if row.method is not None and row.method not in methods:
                yield f"{where}: method: {unknown(row.method, methods)}"
            if row.dataset is None and row.published:
                yield f"{where}: dataset: missing; published values are of one, if only {NOT_NAMED!r}"
            if row.dataset is not None and row.dataset not in datasets:
                yield f"{where}: dataset: {unknown(row.dataset, datasets)}"
            for column in row.published:
                if column not in table.columns:
                    yield f"{where}: published: {unknown(column, table.columns)}"
