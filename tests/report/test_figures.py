"""Figures: the right pixels and numbers in the right places, and the same bytes each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from result_files import CELLS, write_all

from quest.artifacts import ArtifactError, Manifest, load_json, load_tensors, save_tensors
from quest.report.figures import comparison_chart, front, sample_grid, tradeoff_chart
from quest.stages import figures
from quest.stages import table as tables


def write_previews(folder: Path, images: int = 20, seed: int = 0) -> list[Path]:
    """The preview of every cell: image i of cell c is red, as bright as `brightness`; text is never red."""
    files = []
    for index, (method, bits) in enumerate(CELLS):
        tensor = torch.zeros(images, 3, 16, 16, dtype=torch.uint8)
        tensor[:, 0] = brightness(index, torch.arange(images)).to(torch.uint8).reshape(-1, 1, 1)
        notes = {"method": method, "bits": bits, "first": 0}
        files.append(folder / f"{method}-{bits}.safetensors")
        save_tensors(files[-1], {"images": tensor}, Manifest(kind="preview", seeds={"run": seed}, notes=notes))
    return files


def draw(folder: Path, previews: list[Path], table: Path) -> None:
    grid, comparison, tradeoff = (folder / f"{name}.png" for name in ("grid", "comparison", "tradeoff"))
    figures.run("digits", previews, table, grid, comparison, tradeoff)


def brightness(cell, image):
    return 40 * (cell + 1) + image


@pytest.fixture
def table(tmp_path: Path) -> Path:
    tables.run("digits", write_all(tmp_path, 3), tmp_path / "t.json")
    return tmp_path / "t.json"


def pixels(path: Path) -> np.ndarray:
    return (imread(path)[..., :3] * 255).round().astype(np.uint8)


def test_grid_shows_each_image_pixel_for_pixel(tmp_path: Path, table: Path):
    draw(tmp_path, write_previews(tmp_path), table)
    picture = pixels(tmp_path / "grid.png")
    rows = [("fp", "w32a32"), ("nearest", "w8a8"), ("quest", "w8a8"), ("nearest", "w4a4"), ("quest", "w4a4")]
    tops = []
    for cell in rows:
        for column in (0, 15):
            places = np.argwhere((picture == (brightness(CELLS.index(cell), column), 0, 0)).all(-1))
            (top, left), (bottom, right) = places.min(0), places.max(0)
            assert (bottom - top, right - left) == (63, 63)  # 16 pixels, four times as large
            assert len(places) == 64 * 64
        tops.append(top)
    assert tops == sorted(tops)


def test_rows_are_labelled_by_bit_width_and_the_title_says_which_images(tmp_path: Path, table: Path):
    previews = [load_tensors(file, "preview") for file in write_previews(tmp_path, images=5)]
    figure = sample_grid("digits", previews, load_json(table, "table").content["summary"])
    title, *texts = [text.get_text() for text in figure.texts]
    assert title == "digits: images 0–4 of seed 0, the same noise in each column"
    rows = {"Full precision": "FID 3.00\xa0±\xa01.00", "Nearest": "FID 6.00\xa0±\xa01.00\n38.50\xa0±\xa00.25 dB"}
    assert texts[:5] == ["Full precision", rows["Full precision"], "W8A8", "Nearest", rows["Nearest"]]
    assert [text for text in texts if text in ("W8A8", "W4A4", "Nearest", "QuEST")] == [
        *("W8A8", "Nearest", "QuEST"),
        *("W4A4", "Nearest", "QuEST"),
    ]


def test_what_a_column_was_drawn_for_stands_above_it(tmp_path: Path):
    previews = []
    for method, bits in CELLS[:3]:
        manifest = Manifest(
            kind="preview",
            settings={"condition": {"classes": 24, "prompts": None}},
            seeds={"run": 0},
            notes={"method": method, "bits": bits, "first": 2},
        )
        file = tmp_path / f"{method}-{bits}.safetensors"
        save_tensors(file, {"images": torch.zeros(3, 3, 16, 16, dtype=torch.uint8)}, manifest)
        previews.append(load_tensors(file, "preview"))
    for dataset, words in {
        "shapes-class": ["blue circle", "yellow\ncircle", "red square"],
        "shapes-dit": ["blue circle", "yellow\ncircle", "red square"],
        "imagenet": ["class 2", "class 3", "class 4"],
        "elsewhere": ["class 2", "class 3", "class 4"],
    }.items():
        assert [text.get_text() for text in sample_grid(dataset, previews).texts][1:4] == words


def test_a_grid_of_different_seeds_is_refused(tmp_path: Path):
    one, other = write_previews(tmp_path)[0], tmp_path / "other"
    with pytest.raises(ValueError, match=r"found \(seed, first image\) \[\(0, 0\), \(1, 0\)\]"):
        sample_grid("digits", [load_tensors(file, "preview") for file in (one, write_previews(other, seed=1)[1])])


def test_comparison_plots_the_means_and_spreads_of_the_table(table: Path):
    figure = comparison_chart("digits", load_json(table, "table").content["summary"])
    fid, psnr = figure.axes
    lines = {container.get_label(): container for container in fid.containers}
    quest, caps, bars = lines["QuEST"]
    assert [label.get_text() for label in fid.get_xticklabels()] == ["W8A8", "W4A4"]
    assert np.asarray(quest.get_ydata()) == pytest.approx([3.5, 41])
    assert bars[0].get_segments()[1][:, 1] == pytest.approx([40, 42])
    assert len(caps) == 2
    reference = next(line for line in fid.lines if line.get_label() == "Full precision")
    assert np.asarray(reference.get_ydata()) == pytest.approx([3, 3])
    assert len(psnr.containers) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Full precision", "Nearest", "QuEST"]


def test_comparison_of_one_seed_has_no_error_bars(tmp_path: Path):
    tables.run("digits", write_all(tmp_path), tmp_path / "t.json")
    figure = comparison_chart("digits", load_json(tmp_path / "t.json", "table").content["summary"])
    assert all(not bars for axes in figure.axes for _, _, bars in axes.containers)


def test_comparison_skips_what_is_missing(table: Path):
    summary = load_json(table, "table").content["summary"]
    gap = [
        row | ({"fid": None, "psnr": None} if (row["method"], row["bits"]) == ("quest", "w8a8") else {})
        for row in summary
    ]
    fid, psnr = comparison_chart("digits", gap).axes
    for axes in (fid, psnr):
        lengths = {container.get_label(): len(container[0].get_ydata()) for container in axes.containers}
        assert lengths == {"Nearest": 2, "QuEST": 1}


def test_tradeoff_joins_what_nothing_smaller_is_as_good_as(table: Path):
    summary = load_json(table, "table").content["summary"]
    sizes = {"w32a32": 4.0, "w8a8": 1.0, "w4a4": 0.5}
    figure = tradeoff_chart("digits", [row | {"weight_mib": sizes[row["bits"]]} for row in summary])
    fid, _, psnr, _ = figure.axes
    (line,) = [line for line in fid.lines if line.get_alpha() == 0.5]
    assert np.asarray(line.get_xydata()).tolist() == [[0.5, 41], [1.0, 3.5], [4.0, 3]]
    assert [text.get_text() for text in fid.texts] == ["QuEST W4A4", "QuEST W8A8", "Full precision"]
    assert [text.get_text() for text in psnr.texts] == ["QuEST W4A4", "QuEST W8A8"]
    assert psnr.get_xlabel() == "size of the weights (MiB)"
    assert len(figure.legends[0].get_texts()) == 3


def test_the_front_has_one_cell_of_those_that_are_equal():
    assert front([(2, 1), (1, 3), (1, 2), (3, 1), (2, 1), (4, 0.5)]) == [2, 0, 5]
    assert front([]) == []


@pytest.mark.parametrize(("values", "scale"), [([2, 19], "linear"), ([2, 21], "log"), ([0, 50], "linear")])
def test_fid_is_logarithmic_only_over_a_wide_range(table: Path, values: list[float], scale: str):
    summary = [row | {"fid": values[0]} for row in load_json(table, "table").content["summary"]]
    summary[-1]["fid"] = values[1]
    assert comparison_chart("digits", summary).axes[0].get_yscale() == scale


def test_equal_inputs_give_equal_bytes(tmp_path: Path, table: Path):
    previews = write_previews(tmp_path)
    for name in ("first", "second"):
        draw(tmp_path / name, previews, table)
    for file in ("grid.png", "comparison.png", "tradeoff.png"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
        assert b"tEXtSoftware" not in (tmp_path / "first" / file).read_bytes()


def test_a_file_of_another_kind_is_refused(tmp_path: Path, table: Path):
    save_tensors(tmp_path / "model.safetensors", {"x": torch.zeros(1)}, Manifest(kind="model"))
    with pytest.raises(ArtifactError, match="kind 'model' where 'preview' is expected"):
        draw(tmp_path, [tmp_path / "model.safetensors"], table)
    assert not (tmp_path / "grid.png").exists()
