"""The file of published numbers: what it may say, and spot checks of what it says against the papers."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from quest.config.run import load
from quest.config.values import Cell, ConfigError
from quest.config.variants import load_variants, of_cell
from quest.report import paper, published

ROOT = Path(__file__).parents[2]
CONTENT: dict[str, Any] = {
    "datasets": {"LSUN": {"stand_in": "digits", "dataset": None}},
    "tables": {
        "small": {
            "title": "A table",
            "source": "a paper",
            "columns": ["fid"],
            "rows": [{"dataset": "LSUN", "method": "quest", "bits": "w4a4", "published": {"fid": 5.64}}],
        }
    },
}


@pytest.fixture(scope="module")
def real() -> published.Published:
    return published.load(ROOT / "config" / "published.yaml")


def values(table: published.PaperTable, **wanted: str | None) -> list[dict[str, Any]]:
    return [row.published for row in table.rows if all(getattr(row, key) == value for key, value in wanted.items())]


def test_published_numbers(real: published.Published):
    """A value of each of the paper's tables."""
    tables = real.tables
    assert [row["fid"] for row in values(tables["lsun"], dataset="LSUN-Bedrooms", method="quest", label=None)] == [
        *(3.03, 3.26, 5.64),
    ]
    assert values(tables["imagenet"], method="efficientdm", bits="w4a4") == [
        {"fid": 6.97, "sfid": 9.28, "is": 199.96, "size_mb": 243.8}
    ]
    assert values(tables["stable-diffusion"], method="q-diffusion", bits="w4a4") == [{"clip": "N/A"}]
    assert values(tables["components"], method="quest+tla-only") == [{"hours": 13.13, "memory_mb": 11862, "fid": 4.41}]
    assert values(tables["time-embedding"], method="quest+time-full-precision", bits="w8a8") == [
        {"fid": 6.77, "sfid": 22.03}
    ]
    assert values(tables["global-loss"], method="quest+tla-only") == [{"fid": 6.41, "sfid": 11.18}]
    assert values(tables["full-finetuning"], method="quest+full-finetuning", bits="w4a4")[0]["fid"] == 6.36
    assert values(tables["tfmq-dm"], method="tfmq-dm", dataset="ImageNet", bits="w4a8") == [{"fid": 10.29}]
    assert values(tables["bedrooms-sfid"], method="quest", bits="w4a4") == [{"sfid": 7.82, "is": 2.26}]
    assert [row["fid"] for row in values(tables["cifar10"], bits="w4a4")] == ["N/A", 10.48, 9.37]
    assert values(tables["poster-conditional"], method="tfmq-dm", dataset="ImageNet", bits="w8a8") == [
        {"is": 198.86, "fid": 10.79, "sfid": 7.65}
    ]


def test_values_of_others_are_marked(real: published.Published):
    marks = {row.method: row.mark for row in real.tables["lsun"].rows if row.dataset == "LSUN-Churches" and row.method}
    assert marks == {"fp": None, "q-diffusion": None, "ptqd": "re-run", "efficientdm": "re-run", "quest": None}


@pytest.mark.parametrize("suite", ["ablations", "shapes"])
def test_every_cell_of_a_suites_tables_has_valid_settings(real: published.Published, suite: str):
    run, variants = load(ROOT / "config" / f"{suite}.yaml"), load_variants(ROOT / "config")
    for dataset, name in itertools.product(run.datasets, run.run.tables):
        for cell in real.table(name).cells():
            if cell.method != "fp":
                settings = of_cell(run.datasets[dataset], cell.method, variants)
                assert settings.sampler.steps % settings.method(cell.method).sets == 0, (dataset, name, cell)


def test_every_column_has_a_name(real: published.Published):
    for table in real.tables.values():
        assert set(table.columns) <= set(paper.COLUMNS)


def test_cells_of_a_table_come_once_with_full_precision(real: published.Published):
    cells = real.tables["components"].cells()
    assert cells[0] == Cell("fp", "w32a32")
    assert len(set(cells)) == len(cells) == 6
    poster = real.tables["poster-unconditional"]
    assert not [cell for cell in poster.cells() if cell.bits == "w4a32"], "activations are always quantized"
    assert None in [row.cell for row in poster.rows]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "quset"}, "tables.small.rows.0: method: unknown 'quset' (did you mean 'quest'?)"),
        ({"dataset": "LSUM"}, "tables.small.rows.0: dataset: unknown 'LSUM' (did you mean 'LSUN'?)"),
        ({"published": {"fd": 1}}, "tables.small.rows.0: published: unknown 'fd' (did you mean 'fid'?)"),
        ({"method": None}, "tables.small.rows.0: neither method nor label"),
        ({"published": {"fid": "failed"}}, "found 'failed'"),
        ({"dataset": None}, "tables.small.rows.0: dataset: missing; published values are of one, if only 'not named'"),
    ],
)
def test_a_wrong_row(tmp_path: Path, change: dict[str, Any], message: str):
    content = yaml.safe_load(yaml.safe_dump(CONTENT))
    content["tables"]["small"]["rows"][0] |= change
    file = tmp_path / "published.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=re.escape(message)):
        published.load(file)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"stand_in": "digits"}, "datasets.LSUN.dataset: missing; it has no default"),
        ({"stand_in": "digits", "dataset": "lsum"}, "datasets.LSUN: dataset: unknown 'lsum' (did you mean 'lsun'?)"),
        ({"stand_in": "digits", "dataset": "lsun"}, "datasets.LSUN: dataset: lsun is that of Bedrooms already"),
    ],
)
def test_a_dataset_says_which_protocol_is_its_own(tmp_path: Path, place: dict[str, Any], message: str):
    content = CONTENT | {"datasets": {"Bedrooms": {"stand_in": "digits", "dataset": "lsun"}, "LSUN": place}}
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "lsun.yaml").touch()
    file = tmp_path / "published.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(ConfigError, match=re.escape(message)):
        published.load(file)


def test_a_table_whose_name_is_more_than_a_name(tmp_path: Path):
    file = tmp_path / "published.yaml"
    file.write_text(yaml.safe_dump(CONTENT | {"tables": {"a b": CONTENT["tables"]["small"]}}))
    with pytest.raises(ConfigError, match="tables: 'a b': a table is named by small letters, digits and dashes"):
        published.load(file)


def test_bytes_that_are_no_text_are_one_sentence(tmp_path: Path):
    file = tmp_path / "published.yaml"
    file.write_bytes(b"datasets:\n  \xff: 1\n")
    with pytest.raises(ConfigError) as error:
        published.load(file)
    assert str(error.value) == f"{file}: not valid YAML: byte 12 is no UTF-8; save it as UTF-8 text"


def test_the_papers_datasets_have_their_protocols(real: published.Published):
    assert {name: place.dataset for name, place in real.datasets.items()} == {
        "CIFAR-10": "cifar10",
        "LSUN-Bedrooms": "lsun-bedrooms",
        "LSUN-Churches": "lsun-churches",
        "CelebA-HQ": None,
        "FFHQ": None,
        "ImageNet": "imagenet",
        "Stable Diffusion v1.4": "stable-diffusion",
    }


def test_an_unknown_table(real: published.Published):
    with pytest.raises(ConfigError, match=r"table: unknown 'component' \(did you mean 'components'\?\); known are "):
        real.table("component")


def test_a_table_is_headed_by_its_number_in_the_paper(real: published.Published):
    assert real.table("lsun").heading == "Table 3: Unconditional latent models"
    assert real.table("qalora").heading == "Section 4.3: Low-rank adapters in place of finetuning"
    assert real.table("levels").heading == real.table("levels").title
