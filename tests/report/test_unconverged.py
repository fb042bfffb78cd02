"""What tables say of their learned rounding: rows marked, the sentence below, and what is not on record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from result_files import row, write_metrics

from quest.artifacts import load_json
from quest.config.method import Rounding
from quest.config.methods import MethodsSettings, python_name
from quest.config.values import ConfigError
from quest.report import convergence, tables
from quest.report.rows import Row

BLOCKS = Rounding("blocks", "common")
UNITS = {"conv_in": (1.0, 0.98), "down_blocks.0": (0.5, 0.41), "conv_out": (0.3, 0.28)}


def study(folder: Path, units: dict[str, tuple[float, float]]) -> Path:
    """A file as the study writes it: losses as configured, and with more iterations."""
    rows = [
        {
            "unit": unit,
            "layers": 1,
            "weight_bits": 4,
            "iterations": 1000,
            "nearest": 2.0,
            "learned": learned,
            "longer": longer,
            "change": longer / learned - 1,
            "converged": abs(longer / learned - 1) <= convergence.TOLERANCE,
        }
        for unit, (learned, longer) in units.items()
    ]
    pd.DataFrame(rows).to_csv(folder / "convergence.csv", index=False, float_format="%.4g")
    return folder / "convergence.csv"


def summary(folder: Path, known: dict[str, Any] | None, *given: Row) -> tuple[list[str], str]:
    """The names of the rows, and what stands under the headline table."""
    files = []
    for each in given:
        settings = {}
        if each["method"] != "fp":
            own = getattr(MethodsSettings(), python_name(each["method"]))
            change = {"policy": "everything"} if each["method"].endswith("+everything") else {}
            settings = {"method": own.model_dump(mode="json") | change}
        files.append(write_metrics(folder, each, {"settings": settings}))
    content = tables.build("digits", {file: load_json(file, "metrics") for file in files}, known)
    first = tables.sheets(content)[0]
    return [line[0] for line in first.lines], "\n".join(first.notes)


def test_the_words_are_the_studys():
    from quest.studies import convergence as of_study

    assert (of_study.TIMES, of_study.TOLERANCE) == (5, convergence.TOLERANCE)
    assert convergence.TIMES == "five times"


def test_the_study_in_short(tmp_path: Path):
    assert convergence.record(study(tmp_path, UNITS), BLOCKS) == {
        "grouping": "blocks",
        "policy": "common",
        "weight_bits": 4,
        "iterations": 1000,
        "units": 3,
        "changed": 2,
        "unit": "down_blocks.0",
        "change": pytest.approx(-0.18),
    }


@pytest.mark.parametrize("text", ["", "unit,change\nconv_in,much\n", "a,b\n1,2\n"])
def test_a_file_that_is_not_the_studys(tmp_path: Path, text: str):
    file = tmp_path / "convergence.csv"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"convergence.csv: not as the study convergence writes it \(.*remove it"):
        convergence.record(file, BLOCKS)


def test_rows_whose_rounding_has_not_converged_are_marked(tmp_path: Path):
    """Those that start from the rounding that was studied, and no others."""
    cells = [row("fp", "w32a32"), row("nearest"), row("quest"), row("ptqd"), row("efficientdm"), row("tfmq-dm")]
    cells += [row("quest", "w8a8"), row("quest+everything"), row("q-diffusion", "w8a8")]
    names, notes = summary(tmp_path, convergence.record(study(tmp_path, UNITS), BLOCKS), *cells)
    assert sorted(name for name in names if convergence.MARK in name) == ["PTQD †", "QuEST †"]
    assert (
        "† Learned rounding has not converged: with five times the 1,000 iterations the loss of 2 of 3 units of 4-bit "
        "weights changes by more than 5%, most that of down_blocks.0 (-18%). "
        "Not on record for W8A8, QuEST (everything) W4A4, TFMQ-DM W4A4."
    ) in notes


def test_rounding_that_has_converged_is_said_to(tmp_path: Path):
    known = convergence.record(study(tmp_path, {"conv_in": (1.0, 0.98)}), BLOCKS)
    names, notes = summary(tmp_path, known, row("quest"))
    assert names == ["QuEST"]
    said = "Learned rounding has converged: five times the 1,000 iterations change the loss of none of 1 units of 4-bit"
    assert f"{said} weights by more than 5%." in notes
    assert "on record" not in notes


def test_nothing_on_record_is_said_once(tmp_path: Path):
    names, notes = summary(tmp_path, None, row("quest"), row("ptqd"), row("quest", "w8a8"), row("nearest"))
    assert not any(convergence.MARK in name for name in names)
    assert notes.count("Whether learned rounding has converged is not on record") == 1


def test_where_nothing_is_learned_nothing_is_said(tmp_path: Path):
    _, notes = summary(tmp_path, None, row("fp", "w32a32"), row("nearest"), row("efficientdm"))
    assert "rounding" not in notes
