"""The table of one network runs through on a tiny one; its sums are those of its rows."""

from __future__ import annotations

import math
import re

import pytest
from torch import nn

from quest.bench import pipeline, training
from quest.bench.pipeline import Row
from quest.bench.training import PUBLISHED, Block, Step, Timed, Unit


@pytest.mark.usefixtures("tiny_networks")
@pytest.mark.parametrize("name", ["bedrooms", "imagenet"])
def test_every_work_has_a_row(name: str) -> None:
    machine, title, table = pipeline.run(name, iterations=1, batch=4, device="cpu").split("\n\n")
    assert machine.endswith("on a GPU convolutions in float32, products in float32")
    assert title.startswith(f"{name}, ")
    rows = [re.split(r" {2,}", line.strip()) for line in table.splitlines()]
    assert [row[0] for row in rows[1:]] == [
        "weight scales, 80 ranges of each",
        "learned rounding × 20,000",
        "learned activation scales × 5,000",
        "activation scales, 20 steps on 4 samples",
        "teacher's outputs, 1,440 samples",
        f"tla step, batch 2 × {PUBLISHED[name].tla_steps:,}",
        "cma step, batch 4 × 6,400",
        "QuEST from learned rounding",
        "QuEST, with learned rounding",
        "full precision, forward of 4",
        "fake-quantized, forward of 4",
        "EfficientDM step, batch 4 × 16,000",
    ]
    assert all(len(row) == 6 and all(row) for row in rows)
    assert all(math.isfinite(float(row[2].replace(",", ""))) for row in rows[1:])
    # What nobody published is EfficientDM on Bedrooms alone.
    assert [row[0][:11] for row in rows[1:] if row[3] == "–"] == (["EfficientDM"] if name == "bedrooms" else [])


def test_sums_are_hours_of_their_rows() -> None:
    steps = [
        Step("full precision, forward of 50", 500.0, 1.0, 89.0),
        Step("tla step, batch 2", 90.0, 1.0, 485.0),
        Step("cma step, batch 4", 180.0, 1.0, 1237.5),
    ]
    blocks = [Block(Unit("conv_in", nn.Identity(), {}), 2, 9.0, 3.6)]
    network: training.QuantizedNetwork = nn.Identity()  # type: ignore[assignment]  # not asked for anything
    found = Timed(network, 1, steps, blocks)
    searched, scales = Row("weight scales", "s", 36.0, 3600.0), Row("activation scales", "s", 72.0, 360.0)
    rows = {row.work: row for row in pipeline.learning(found, searched, scales, PUBLISHED["bedrooms"])}
    assert rows["learned rounding × 20,000"].ours == pytest.approx(0.1)
    assert rows["learned activation scales × 5,000"].ours == pytest.approx(0.01)
    assert rows["teacher's outputs, 1,440 samples"].ours == pytest.approx(0.004)
    assert rows["tla step, batch 2 × 16,000"].ours == pytest.approx(0.4)
    assert rows["cma step, batch 4 × 6,400"].ours == pytest.approx(0.32)
    own = rows["QuEST from learned rounding"]
    assert own.ours == pytest.approx(0.02 + 0.004 + 0.4 + 0.32)
    assert own.published == pytest.approx(0.1 + 0.4 + 485 * 16_000 / 3.6e6 + 2.2)
    assert rows["QuEST, with learned rounding"].ours == pytest.approx(own.ours + 0.01 + 0.1)
