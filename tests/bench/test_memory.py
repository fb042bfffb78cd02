"""The benchmark of memory runs the real chain: every image is taken in once and all metrics come out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from quest.bench import memory


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SIZE", 32)
    monkeypatch.setattr(memory, "WIDTHS", (6, 5, 4))


def test_memory_after_each_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    text = memory.run(250, 100, "cpu")
    rows = [re.split(r" {2,}", line) for line in text.split("\n\n")[1].splitlines()]
    assert [row[0] for row in rows] == [
        "after",
        "start",
        "reference of 250 images",
        "250 images of 32×32 in shards of 100",
        "all metrics",
    ]
    peaks = [float(row[2].replace(",", "")) for row in rows[1:]]
    assert peaks == sorted(peaks)
    assert "squared error 0" in text
    fid = re.search(r"\bfid (\S+),", text)
    assert fid is not None
    assert 0 <= float(fid[1]) < 1, "two samples of one distribution"
    assert list(tmp_path.iterdir()) == [], "no shard is left"


def test_shards_hold_every_image_once_and_differ_by_seed() -> None:
    parts = list(memory._random(250, 100, seed=0))
    assert [len(part) for part in parts] == [100, 100, 50]
    assert parts[0].shape[1:] == (3, 32, 32)
    assert parts[0].dtype == torch.uint8
    assert not torch.equal(parts[0], parts[1])
    assert not torch.equal(parts[0], next(memory._random(250, 100, seed=1)))


def test_features_have_the_widths_of_the_network_they_stand_for() -> None:
    features = memory.RandomFeatures("cpu")(torch.zeros(3, 3, 32, 32, dtype=torch.uint8))
    assert tuple(part.shape for part in features) == ((3, 6), (3, 5), (3, 4))
