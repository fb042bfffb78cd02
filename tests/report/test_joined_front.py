"""Points joined: who is on the front, what choosing brings, and what cannot be compared."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quest.artifacts import ArtifactError, Manifest, save_json
from quest.report import front

ERRORS = {"near": [1e-3, 3e-3], "far": [1e-2, 3e-2]}


def save(folder: Path, method: str, bits: str, chosen: str, size: int, errors: str, **changes: Any) -> None:
    mse = sum(ERRORS[errors]) / 2
    row = {
        **{"dataset": "tiny", "method": method, "bits": bits, "chosen": chosen, "seed": 0, "source": "chain"},
        **{"share": size / 1000, "bytes": size, "mean_weight_bits": 4.0, "predicted_mse": None, "seconds": 1},
        **{"psnr": round(-10 * math.log10(mse), 2), "worst_psnr": 10.0, "images": 2, "layers": {"3": 2, "5": 1}},
        **changes,
    }
    manifest = Manifest("point", inputs={"model": "a" * 64}, notes={"mse_of_images": ERRORS[errors]})
    save_json(folder / f"{front.name(method, bits, chosen, 0)}.json", row, manifest)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path, "quest", "w4a8", "uniform", 280, "far")
    save(tmp_path, "quest", "w4a8", "mixed", 279, "near")
    save(tmp_path, "nearest", "w4a8", "uniform", 279, "far")
    save(tmp_path, "nearest", "w8a8", "uniform", 530, "near")
    save(tmp_path, "nearest", "w4a4", "uniform", 300, "far")
    return tmp_path


def test_tables(folder: Path) -> None:
    found = front.points(folder, 0)
    quality = front.quality(found)
    assert quality.headers == ("Method", "Weights", "W8A8", "W4A8", "W4A4")
    assert quality.lines == (
        ("Size, of float16", "", "0.53", "0.28", "0.30"),
        ("Nearest", "uniform", "26.99", "16.99", "16.99"),
        ("QuEST", "uniform", "–", "16.99", "–"),
        ("QuEST", "chosen", "–", "**26.99**", "–"),
    )
    gains = front.gains(found)
    assert gains is not None
    assert gains.headers == ("Method", "size of W4A8")
    assert [[text.replace("\u00a0", " ") for text in line] for line in gains.lines] == [
        ["QuEST", "+10.00 [+10.00, +10.00], 100%"]
    ], "each image ten times closer: ten decibels, without a doubt"
    assert front.best(found).lines == (("0.279", "QuEST", "W4A8", "chosen", "26.99"),), "the rest is larger or farther"


def test_files(folder: Path) -> None:
    front.write(folder, 0)
    with (folder / "front.csv").open() as opened:
        lines = list(csv.DictReader(opened))
    assert [(line["method"], line["bits"], line["chosen"]) for line in lines] == [
        ("nearest", "w8a8", "uniform"),
        ("nearest", "w4a8", "uniform"),
        ("quest", "w4a8", "uniform"),
        ("quest", "w4a8", "mixed"),
        ("nearest", "w4a4", "uniform"),
    ]
    assert lines[3]["layers"] == "2×3 1×5"
    text = (folder / "front.md").read_text()
    assert [text.count(each) for each in ("bold where that is closer.", "over the images of", "The front:")] == [
        1,
        1,
        1,
    ]
    assert (folder / "front.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_joins_ends_to_both_lines(folder: Path) -> None:
    save(folder, "quest", "w8a8", "uniform", 531, "far")
    panels = front.chart(front.points(folder, 0)).axes
    assert [axes.get_title(loc="left") for axes in panels] == [f"tiny, activations of {bits} bits" for bits in (8, 4)]
    sizes: list[Any] = [list(np.asarray(line.get_xdata())) for line in panels[0].lines]
    wanted = [[0.279], [0.279, 0.53], [0.28, 0.531], [0.279, 0.531]]
    assert sizes == wanted, "the front, uniform of nearest, which has ends alone beside, then uniform and chosen"


def test_other_images_are_refused(folder: Path) -> None:
    save(folder, "ptqd", "w4a8", "uniform", 280, "far", images=3)
    with pytest.raises(ArtifactError, match=r"ptqd-w4a8-uniform-seed0\.json: of 3 images .*, but .* of 2 images"):
        front.points(folder, 0)


def test_no_point_is_said(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no point of seed 0; name a --method"):
        front.points(tmp_path, 0)
