"""What pictures share: images keep their pixels, and equal figures give equal bytes in both formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quest.config.methods import METHODS
from quest.report import drawing


@pytest.mark.parametrize(("size", "channels", "side"), [(16, 3, 64), (24, 1, 72), (100, 3, 100)])
def test_images_are_enlarged_by_whole_factors(size: int, channels: int, side: int):
    strip = drawing.strip(np.full((3, channels, size, size), 7, np.uint8))
    assert strip.shape == (side, 3 * side + 8, 3)
    assert (strip[:, :side] == 7).all()
    assert (strip[:, side : side + 4] == 255).all()


def test_colours_are_kept():
    image = np.zeros((1, 3, 64, 64), np.uint8)
    image[0, :, 10, 20] = 1, 2, 3
    assert drawing.strip(image)[10, 20].tolist() == [1, 2, 3]


def test_images_with_two_channels_cannot_be_shown():
    with pytest.raises(ValueError, match="2 channels cannot be shown; expected 1 or 3"):
        drawing.strip(np.zeros((1, 2, 8, 8), np.uint8))


def test_any_number_of_lines_is_told_apart():
    assert len({(drawing.colour(index), drawing.marker(index)) for index in range(36)}) == 36
    assert len({drawing.colour(index) for index in range(6)}) == len({drawing.marker(index) for index in range(6)}) == 6
    assert drawing.colour(1_000).startswith("#")


def test_a_method_has_one_colour_whatever_stands_beside_it():
    colours = {method: drawing.method_colour(method) for method in METHODS}
    assert len(set(colours.values())) == len(METHODS)
    assert drawing.method_styles(["quest"])["quest"] == drawing.method_styles(["fp", *METHODS])["quest"]
    assert drawing.method_colour("fp") == drawing.INK
    assert drawing.method_colour("gone") not in colours.values()


def test_variants_share_the_colour_and_are_told_apart():
    names = ["quest", *(f"quest+{number}" for number in range(18))]
    styles = drawing.method_styles(names)
    assert {style["color"] for style in styles.values()} == {drawing.method_colour("quest")}
    assert len({(style["marker"], style["linestyle"]) for style in styles.values()}) == len(names)


@pytest.mark.parametrize(("suffix", "small"), [("png", False), ("png", True), ("svg", False)])
def test_equal_figures_give_equal_bytes(tmp_path: Path, suffix: str, small: bool):
    for name in ("first", "second"):
        figure = drawing.figure(3, 2)
        axes = figure.add_subplot()
        axes.plot([0, 1], [2, 3], marker="o")
        drawing.plain(axes, "a title", "x (steps)", "y (dB)")
        drawing.save(figure, tmp_path / f"{name}.{suffix}", small)
    content = (tmp_path / f"first.{suffix}").read_bytes()
    assert content == (tmp_path / f"second.{suffix}").read_bytes()
    assert suffix == "png" or b">a title</text>" in content
