"""The texts of a table: every row to its last digit for programs, the summary for people, both from the artifact."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from result_files import CELLS, row, write_all

from quest.artifacts import ArtifactError, Manifest, load_json, save_json
from quest.stages import table, write_table


def test_texts_are_those_of_the_artifact(tmp_path: Path) -> None:
    made, csv, markdown = (tmp_path / f"table.{suffix}" for suffix in ("json", "csv", "md"))
    table.run("digits", write_all(tmp_path, seeds=2), made)
    assert not csv.exists(), "the table stage writes numbers only"
    write_table.run(made, csv, markdown)
    rows = load_json(made, "table").content["rows"]
    assert len(rows) == 2 * len(CELLS)
    read = pd.read_csv(csv)
    for name in ("method", "bits", "seed", "fid", "sfid"):
        assert list(read[name]) == [each[name] for each in rows]
    line = next(line for line in markdown.read_text().splitlines() if line.startswith("| QuEST") and "W4A4" in line)
    assert f"{(row(seed=0)['fid'] + row(seed=1)['fid']) / 2:.2f}\u00a0±\u00a00.71" in line


def test_another_artifact_is_refused_and_nothing_written(tmp_path: Path) -> None:
    made, csv, markdown = (tmp_path / f"table.{suffix}" for suffix in ("json", "csv", "md"))
    save_json(made, {"rows": []}, Manifest(kind="paper"))
    with pytest.raises(ArtifactError, match="kind 'paper' where 'table' is expected"):
        write_table.run(made, csv, markdown)
    assert list(tmp_path.iterdir()) == [made]
