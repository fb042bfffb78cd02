"""``config/published.yaml``: the papers' tables and our ablations, as cells and published numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field

from quest.config.methods import METHODS
from quest.config.reading import unknown, validate
from quest.config.run import CONFIG_FILE
from quest.config.values import FULL_PRECISION, Bits, Cell, ConfigError, Settings
from quest.config.variants import load_variants

PUBLISHED_FILE = CONFIG_FILE.parent / "published.yaml"
FAILED = "N/A"  # what the papers print where no usable image came out


class PaperDataset(Settings):
    """What a paper measured on."""

    stand_in: str = Field(description="the embedded dataset that stands in for it")
    dataset: str | None = Field(default=None, description="its own name in config/datasets, where it has a protocol")


class PaperRow(Settings):
    """One row of a table: a cell of ours, or the name of what is not here, and what was published on it."""

    dataset: str | None = Field(default=None, description="the paper's dataset")
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
    """Read and validate the file, with ``variants.yaml`` beside it.

    Raises ConfigError, naming the row, for a method, dataset or published column that is none.
    """
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: {error}") from None
    published = validate(Published, content, str(file))
    methods = [FULL_PRECISION, *METHODS, *load_variants(file.parent)]
    for name, table in published.tables.items():
        for number, row in enumerate(table.rows):
            where = f"{file}: tables.{name}.rows.{number}"
            if row.method is None and row.label is None:
                raise ConfigError(f"{where}: neither method nor label; expected one of them")
            if row.method is not None and row.method not in methods:
                raise ConfigError(f"{where}: method: {unknown(row.method, methods)}")
            if row.dataset is not None and row.dataset not in published.datasets:
                raise ConfigError(f"{where}: dataset: {unknown(row.dataset, published.datasets)}")
            for column in row.published:
                if column not in table.columns:
                    raise ConfigError(f"{where}: published: {unknown(column, table.columns)}")
    return published
