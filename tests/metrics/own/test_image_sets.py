"""Folders and batches: what is read, in which order, what is told, and what is refused before anything is computed."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from quest.artifacts import ArtifactError
from quest.metrics.extractor import Classifier, ClassifierExtractor
from quest.metrics.own import images as sets
from quest.metrics.own.images import Finding, Folder, Reading, open_for, open_images

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 24, 3), dtype=np.uint8)
KEEP, SKIP = Reading(other_sizes="keep"), Reading(other_sizes="skip")


def save(path: Path, pixels: NDArray[np.uint8], **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images of 16×24, the last four in subfolders."""
    for number, pixels in enumerate(PIXELS):
        save(tmp_path / "images" / ("" if number < 8 else f"z{number % 2}") / f"{number:02}.png", pixels)
    return tmp_path / "images"


def test_images_come_in_the_order_of_their_paths_with_those_of_subfolders(folder: Path):
    images = open_images(folder, 3, Reading())
    assert (images.count, images.size, images.channels) == (12, (16, 24), 3)
    assert images.names == (*(f"{n:02}.png" for n in range(8)), "z0/08.png", "z0/10.png", "z1/09.png", "z1/11.png")
    order = [*range(8), 8, 10, 9, 11]
    assert np.array_equal(torch.cat(list(images.parts())).numpy(), PIXELS[order].transpose(0, 3, 1, 2))
    assert images.found == {"subfolders": Finding("read too", 2, ("z0", "z1"))}


@pytest.mark.parametrize("channels", [1, 3])
def test_images_lie_in_memory_as_the_stages_have_them(tmp_path: Path, channels: int):
    """Other strides, which one channel may have, would make convolutions sum in another order."""
    save(tmp_path / "grey.png", PIXELS[0, ..., 0])
    for images in open_images(tmp_path, channels, Reading()).parts():
        assert images.stride() == torch.empty(images.shape).stride()


def test_parts_are_as_many_images_as_memory_allows(folder: Path, monkeypatch: pytest.MonkeyPatch):
    whole = torch.cat(list(open_images(folder, 3, Reading()).parts()))
    monkeypatch.setattr(sets, "_PART_BYTES", 5 * 16 * 24 * 3)
    parts = list(open_images(folder, 3, Reading()).parts())
    assert [len(part) for part in parts] == [5, 5, 2]
    assert torch.equal(torch.cat(parts), whole)


def test_the_hash_is_of_what_sha256sum_prints(folder: Path):
    command = "find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum"
    printed = subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, text=True, check=True).stdout
    before = open_images(folder, 3, Reading()).sha256
    assert before == printed.split()[0]
    save(folder / "00.png", PIXELS[0] ^ 1)
    assert open_images(folder, 3, Reading()).sha256 != before


def test_every_kind_of_file_is_counted_and_named(folder: Path):
    save(folder / "grey.png", PIXELS[0, ..., 0])
    save(folder / "grey.JPG", PIXELS[0, ..., 0])
    Image.fromarray(np.zeros((16, 24), np.uint16)).save(folder / "deep.png")
    save(folder / "clear.webp", np.zeros((16, 24, 4), np.uint8), lossless=True)
    (folder / "captions.txt").write_text("a caption")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "z2").symlink_to(folder / "z0")
    found = open_images(folder, 3, Reading(background=(255, 255, 255))).found
    assert {what: (each.count, each.names) for what, each in found.items()} == {
        "greyscale": (3, ("deep.png", "grey.JPG", "grey.png")),
        "16-bit": (1, ("deep.png",)),
        "transparent": (1, ("clear.webp",)),
        "other files": (3, (".hidden.png", "captions.txt", "z2/ (a link)")),
        "subfolders": (2, ("z0", "z1")),
    }
    assert found["16-bit"].done == "the high byte was kept"


def test_all_that_stands_against_a_folder_is_said_at_once(folder: Path):
    save(folder / "flipped.png", PIXELS[0].transpose(1, 0, 2))
    save(folder / "clear.png", np.zeros((16, 24, 4), np.uint8))
    (folder / "empty.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="not all of its 15 images can be measured") as error:
        open_images(folder, 3, Reading())
    lines = str(error.value).splitlines()[1:]
    assert sorted(line.strip() for line in lines) == [
        "1 broken: empty.jpg (empty); --skip-broken leaves them out",
        "1 of another size than 16×24, which most have: flipped.png (24×16); --other-sizes skip leaves them out, "
        "--other-sizes keep has Inception resize each from its own size",
        "1 transparent: clear.png; --background COLOUR (white, black, #808080, …) says what shows through",
    ]


def test_images_of_another_size_are_skipped_or_kept(folder: Path):
    save(folder / "03-flipped.png", PIXELS[0].transpose(1, 0, 2))
    skipped, kept = open_images(folder, 3, SKIP), open_images(folder, 3, KEEP)
    assert (skipped.count, skipped.size) == (12, (16, 24))
    assert skipped.found["of another size"] == Finding("left out", 1, ("03-flipped.png (24×16)",))
    assert (kept.count, kept.size) == (13, None)
    assert [tuple(part.shape) for part in kept.parts()] == [(3, 3, 16, 24), (1, 3, 24, 16), (9, 3, 16, 24)]


def test_the_size_that_is_expected_goes_before_that_of_most(folder: Path):
    save(folder / "flipped.png", PIXELS[0].transpose(1, 0, 2))
    with pytest.raises(ValueError, match=r"12 of another size than 24×16, which is expected: 00\.png \(16×24\)"):
        open_images(folder, 3, Reading(), (24, 16))
    assert open_images(folder, 3, SKIP, (24, 16)).names == ("flipped.png",)
    with pytest.raises(ValueError, match=r"all of its 13 images are left out: 00\.png \(16×24\)"):
        open_images(folder, 3, SKIP, (8, 8))


def test_broken_files_are_left_out_where_that_is_wanted(folder: Path):
    (folder / "00.png").write_bytes((folder / "00.png").read_bytes()[:200])
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    images = open_images(folder, 3, Reading(skip_broken=True))
    assert images.count == 11
    names = images.found["broken"].names
    assert names[0].startswith("00.png (")
    assert names[1] == "gone.png (No such file or directory)"


def test_names_may_be_of_any_bytes(folder: Path):
    name = os.fsdecode(b"\xff.png")
    save(folder / name, PIXELS[0, ..., 0])
    images = open_images(folder, 3, Reading())
    assert images.found["greyscale"].names == ("�.png",)
    assert sum(len(part) for part in images.parts()) == 13
    (folder / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 broken: �\.png \(empty\)"):
        open_images(folder, 3, Reading())


def test_a_folder_without_images_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no image in it or its subfolders; expected PNG, JPEG or WebP files$"):
        open_images(tmp_path, 3, Reading())
    (tmp_path / "a.tiff").write_bytes(b"")
    with pytest.raises(ValueError, match=r"WebP files; it has a\.tiff"):
        open_images(tmp_path, 3, Reading())
    with pytest.raises(ValueError, match="no such folder or file; expected a folder of"):
        open_images(tmp_path / "none", 3, Reading())
    with pytest.raises(ValueError, match=r"a file that is no \.npz"):
        open_images(tmp_path / "a.tiff", 3, Reading())


def test_files_that_change_between_the_two_looks_are_refused(folder: Path):
    images = open_images(folder, 3, Reading())
    save(folder / "05.png", PIXELS[0])
    with pytest.raises(ArtifactError, match=r"05\.png: changed while the folder was measured"):
        list(images.parts())


def test_sizes_are_kept_only_for_an_extractor_that_resizes(folder: Path):
    extractor = ClassifierExtractor(Classifier(3, 10), "tiny", "0" * 64, "cpu")
    with pytest.raises(ValueError, match="--other-sizes keep: extractor tiny does not resize"):
        open_for(extractor, folder, KEEP)
    assert isinstance(open_for(extractor, folder, Reading()), Folder)


def test_a_batch_is_its_images_in_the_channels_that_are_wanted(tmp_path: Path):
    file = tmp_path / "batch.npz"
    np.savez(file, arr_0=PIXELS)
    colour = open_images(file, 3, Reading())
    assert (colour.count, colour.size, colour.found) == (12, (16, 24), {})
    assert colour.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert np.array_equal(torch.cat(list(colour.parts())).numpy(), PIXELS.transpose(0, 3, 1, 2))
    with pytest.raises(ValueError, match="images in colour; the extractor takes greyscale"):
        list(open_images(file, 1, Reading()).parts())
    np.savez(file, arr_0=PIXELS[..., :1])
    grey = open_images(file, 3, Reading())
    assert grey.found["greyscale"].count == 12
    assert np.array_equal(torch.cat(list(grey.parts())).numpy(), PIXELS[..., :1].transpose(0, 3, 1, 2).repeat(3, 1))


def test_a_batch_of_another_size_or_with_alpha_is_refused(tmp_path: Path):
    file = tmp_path / "batch.npz"
    np.savez(file, arr_0=PIXELS)
    with pytest.raises(ValueError, match="its images are 16×24, but 24×16 is expected"):
        open_images(file, 3, Reading(), (24, 16))
    assert open_images(file, 3, KEEP, (24, 16)).found["of another size"].count == 12
    np.savez(file, arr_0=PIXELS[..., [0, 1, 2, 0]])
    with pytest.raises(ValueError, match="its images have 4 channels; expected 1 or 3"):
        open_images(file, 3, Reading())
