"""Sample grids: the same images of every cell, and their closeness to full precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from quest.artifacts import Manifest, save_tensors
from quest.studies import samples
from quest.studies.subject import Subject


def write(path: Path, method: str, bits: str, value: int, seed: int = 0) -> Path:
    notes = {"method": method, "bits": bits, "first": 0}
    images = torch.full((6, 1, 100, 100), value, dtype=torch.uint8)
    save_tensors(path, {"images": images}, Manifest(kind="preview", seeds={"run": seed}, notes=notes))
    return path


def test_rows_and_chart(subject: Subject, tmp_path: Path):
    cells = [("quest", "w4a4", 51), ("fp", "w32a32", 0), ("nearest", "w8a8", 0)]
    given = [write(tmp_path / f"{method}.safetensors", method, bits, value) for method, bits, value in cells]
    rows = samples.measure(replace(subject, files={"previews": given}))
    assert [(row["method"], row["image"]) for row in rows[::4]] == [("fp", 0), ("nearest", 0), ("quest", 0)]
    assert [row["psnr"] for row in rows[4:]] == [None] * 4 + [pytest.approx(13.979, abs=1e-3)] * 4
    figure = samples.chart("tiny", rows)
    shown = [np.asarray(axes.get_images()[0].get_array()) for axes in figure.axes if axes.get_images()]
    # full precision once, then two cells: four images of 100 pixels a side, made 33, with gaps of four
    assert [picture.shape[:2] for picture in shown] == [(66, 4 * 66 + 12)] * 3


def test_other_seeds_and_no_full_precision_are_refused(subject: Subject, tmp_path: Path):
    one = write(tmp_path / "a", "quest", "w4a4", 1)
    other = write(tmp_path / "b", "fp", "w32a32", 1, seed=1)
    with pytest.raises(ValueError, match=r"found \(seed, first image\) \[\(0, 0\), \(1, 0\)\]"):
        samples.measure(replace(subject, files={"previews": [one, other]}))
    with pytest.raises(ValueError, match="needs the preview of full precision"):
        samples.measure(replace(subject, files={"previews": [one]}))
