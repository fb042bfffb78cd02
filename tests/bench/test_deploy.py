"""The benchmark of packed networks, on a tiny model."""

from __future__ import annotations

from pathlib import Path

from quest.bench import deploy
from quest.bench.deploy import Row


def test_on_a_cpu(model_file: Path) -> None:
    report, *rows = deploy.on_cpu(model_file, "w4a8", 2, repeats=1)
    assert isinstance(report, str)
    assert "layers: " in report
    measured = {row.what: row for row in rows if isinstance(row, Row)}
    assert list(measured) == ["float32", "bf16", "w4a8, simulated", "w4a8 packed, floats", "w4a8 packed, integers"]
    assert all(row.seconds > 0 and row.batch == 2 for row in measured.values())
    assert measured["w4a8 packed, floats"].weights_mib < measured["bf16"].weights_mib < measured["float32"].weights_mib
    assert str(measured["float32"]).count("|") == deploy.HEADER.splitlines()[0].count("|")
