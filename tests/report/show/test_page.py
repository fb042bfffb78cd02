"""The page stands by itself: numbers without JavaScript, every image as it was, nothing fetched from anywhere."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from show_files import SHARD, write_cell, write_images

from quest.artifacts import Manifest, save_tensors
from quest.cli import main
from quest.report.show import images, page
from quest.report.show.results import groups


class Reader(HTMLParser):
    """What a browser without JavaScript has of a page: the cells of its tables, and addresses in attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.rows: list[list[str]] = []
        self.addresses: list[str] = []
        self.scripts = 0
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action")]
        self.scripts += tag == "script"
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell &= tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.rows[-1][-1] += data


def data_of(text: str) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_tables_have_every_cell_and_its_spread_without_javascript(results: Path):
    rows = [row for row in Reader(page.html(groups((), results))).rows if row]
    assert rows[0][:3] == ["Method", "Bits", "FID ↓"]
    by_name = {(row[0], row[1]): row for row in rows}
    assert by_name["QuEST", "W4A4"][2] == "40.00\xa0±\xa00.10*", "the second table: one seed, the error of sampling"
    assert by_name["QuEST (tla only)", "W4A4"][2] == "40.50\xa0±\xa00.71"
    assert len(rows) == 2 + 6 + 2


def test_nothing_is_fetched_and_a_prompt_is_no_markup(results: Path):
    text = page.html(groups((), results))
    read = Reader(text)
    assert read.addresses == ["data:,"]
    assert read.scripts == 2
    assert "url(" not in text
    assert "<b>small" not in text
    assert data_of(text)[1]["conditions"][:3] == [
        "a <b>small</b> circle</script>",
        "a large star",
        "a <b>small</b> circle</script>",
    ]


def test_images_are_carried_as_they_are(results: Path):
    digits, text = data_of(page.html(groups((), results)))
    assert (digits["width"], digits["height"], digits["images"], digits["conditions"]) == (16, 16, 64, None)
    cells = {cell["name"]: cell for cell in digits["cells"]}
    assert list(cells["quest-w4a4"]["sprites"]) == ["0"]
    column = pixels(cells["nearest-w4a4"]["sprites"]["0"])  # the second of CELLS
    assert column.shape == (64 * 16, 16)
    assert [int(column[16 * index, 0]) for index in (0, 1, 63)] == [10, 11, 73]
    assert pixels(text["cells"][0]["sprites"]["0"]).shape == (64 * 16, 16, 3)


def test_the_numbers_beside_a_row(results: Path):
    digits, _ = data_of(page.html(groups((), results)))
    cells = {cell["name"]: cell["numbers"] for cell in digits["cells"]}
    assert cells["quest-w4a4"] == ["FID 40.50\xa0±\xa00.71", "PSNR 29.88\xa0±\xa00.18 dB", "0.50 MiB · 1.50 GBOPs"]
    assert cells["fp-w32a32"] == ["FID 2.50\xa0±\xa00.71", "4.00 MiB · 100.0 GBOPs"]


@pytest.fixture
def noisy(results: Path) -> Path:
    """The same, with images of noise, which nothing makes small; those of the second cell are full precision's but
    for the last."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 3, 16, 16), np.uint8)
    for number, (method, bits) in enumerate([("fp", "w32a32"), ("quest", "w4a4")]):
        images = torch.from_numpy(noise.copy())
        images[63] = images[63] // 2 if number else images[63]
        manifest = Manifest(kind="preview", settings={"condition": None}, inputs={"samples": SHARD})
        file = results / f"results/previews/shapes-text/{method}-{bits}-seed0.safetensors"
        save_tensors(file, {"images": images}, manifest)
    return results


def test_a_page_stays_below_its_limit_by_compressed_then_by_fewer_images(
    noisy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(page, "_TEXT", 60_000)
    caplog.set_level(logging.INFO)
    found = groups(("shapes-text",), noisy)
    (whole,) = data_of(page.html(found))
    assert (whole["images"], whole["exact"]) == (64, True)
    for limit, count in ((150_000, {64}), (100_000, set(range(10, 60)))):
        text = page.html(found, limit)
        (shown,) = data_of(text)
        assert len(text.encode()) < limit
        assert shown["images"] in count
        assert not shown["exact"]
        assert shown["cells"][0]["sprites"]["0"].startswith("data:image/avif;base64,")
        assert shown["cells"][1]["psnr"] == whole["cells"][1]["psnr"], "of the images themselves"
    assert "compressed images, and the first" in caplog.text
    with pytest.raises(ValueError, match="no room for an image of each cell; name fewer cells"):
        page.html(found, 60_500)


def test_closeness_is_that_of_each_image(noisy: Path):
    (shown,) = data_of(page.html(groups(("shapes-text",), noisy)))
    full, quest = shown["cells"]
    assert full["psnr"] == {}
    *equal, last = quest["psnr"]["0"]
    assert equal == [None] * 63
    assert 8 < last < 12


def test_compressed_images_are_close():
    ramp = np.linspace(0, 255, 32).astype(np.uint8)
    image = np.stack([ramp[:, None] + 0 * ramp, ramp[None] + 0 * ramp[:, None], 255 - ramp[:, None] + 0 * ramp])[None]
    for channels in (1, 3):
        exact, small = (pixels(images.sprite(image[:, :channels], each)) for each in (True, False))
        error = exact.astype(float) - np.asarray(small, float).reshape(32, 32, -1)[..., :channels].reshape(exact.shape)
        assert np.square(error).mean() < 10  # 38 dB


def test_images_of_other_samples_than_the_numbers_are_left_out(results: Path, caplog: pytest.LogCaptureFixture):
    write_images(write_cell(results, "ptqd", "w8a8"), 0, samples="6" * 64)
    digits, _ = data_of(page.html(groups((), results)))
    assert {cell["name"]: list(cell["sprites"]) for cell in digits["cells"]}["ptqd-w8a8"] == []
    assert "ptqd-w8a8-seed0.safetensors: of other samples than the numbers" in caplog.text


def test_large_images_become_smaller():
    large = np.arange(2 * 3 * 300 * 260, dtype=np.uint32).astype(np.uint8).reshape(2, 3, 300, 260)
    small = images.reduced(large)
    assert small.shape == (2, 3, 100, 86)
    assert small[0, 0, 0, 0] == round(large[0, 0, :3, :3].mean())
    with pytest.raises(ValueError, match="2 channels cannot be shown"):
        images.reduced(large[:, :2])


def test_the_command_writes_a_file(results: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(results)
    done = CliRunner().invoke(main, ["show", "digits", "--output", "page.html"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("page.html: 0.")
    assert len(data_of((results / "page.html").read_text(encoding="utf-8"))) == 1
    monkeypatch.chdir(results / "results")
    done = CliRunner().invoke(main, ["show", "--output", "page.html"])
    assert (done.exit_code, "dvc pull" in done.output) == (1, True)
