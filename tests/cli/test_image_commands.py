"""`quest reference` and `quest measure` on images of one's own: which command is meant, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from quest.artifacts import Manifest, load_json
from quest.cli import main
from quest.cli.announcing import Announcer
from quest.metrics import inception as inceptions
from quest.metrics.extractor import Classifier, save_extractor

PIXELS = np.random.default_rng(0).integers(0, 256, (44, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with real images, samples, and an extractor; and one dataset."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_extractor(Path("extractor.safetensors"), Classifier(3, 10, width=8), "narrow", Manifest(kind="extractor"))
    for name, first in (("real", 0), ("samples", 1)):
        Path(name).mkdir()
        for number, pixels in enumerate(PIXELS[first:42]):
            Image.fromarray(pixels).save(f"{name}/{number:02}.png")
    Path("config/datasets").mkdir(parents=True)
    Path("config/datasets/digits.yaml").write_text("title: digits")
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["--quiet", *arguments])


def printed(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    return result.output


def make(*arguments: str) -> str:
    return printed("reference", "real", "--extractor", "extractor.safetensors", "--device", "cpu", *arguments)


def measure(*arguments: str) -> str:
    given = ("samples", "--reference", "real.safetensors", "--extractor", "extractor.safetensors", "--device", "cpu")
    return printed("measure", *given, *arguments)


def resolved(*arguments: str) -> str:
    """What the command of such a line calls its first argument."""
    _, command, _ = main.resolve_command(click.Context(main, obj=Announcer()), list(arguments))
    return next(each.name or "" for each in command.params if isinstance(each, click.Argument))


def test_a_stage_is_meant_where_a_dataset_comes_first_or_a_protocol_is_given(here: Path):
    assert resolved("measure", "digits", "shard.safetensors") == "dataset"
    assert resolved("reference", "digits", "--extractor", "e") == "dataset"
    assert resolved("reference", "other", "--settings", "{}") == "dataset"
    assert resolved("reference", "other", "--settings={}") == "dataset"


def test_images_are_meant_by_everything_else(here: Path):
    assert resolved("measure", "samples") == "images"
    assert resolved("measure", "--reference", "digits", "samples") == "images"
    assert resolved("reference", "./digits", "--name", "digits") == "images"
    assert resolved("measure") == "images"


def test_a_reference_says_what_it_is_of(here: Path):
    Image.fromarray(PIXELS[42, ..., 0]).save("real/grey.png")
    Path("real/captions.txt").write_text("")
    line, *findings = make().splitlines()
    assert line.startswith("real.safetensors: real, 43 images of 8×8, sha256 ")
    assert line.endswith("…; features of narrow, resize none")
    assert findings == [
        "  1 greyscale, repeated to three channels: grey.png",
        "  1 other files, not read: captions.txt",
    ]


def test_a_reference_for_programs(here: Path):
    told = json.loads(make("--name", "flowers", "--output", "f.safetensors", "--json"))
    assert (told["name"], told["output"], told["images"], told["image_size"]) == ("flowers", "f.safetensors", 42, 8)
    assert (told["extractor"], told["resize"], told["found"]) == ("narrow", "none", {})
    assert len(told["images_sha256"]) == len(told["sha256"]) == 64


def test_a_reference_is_replaced_only_by_force(here: Path):
    make()
    arguments = ("reference", "real", "--extractor", "extractor.safetensors", "--device", "cpu")
    assert "real.safetensors: is there already; --force replaces it" in refused(*arguments)
    make("--force")


def test_a_measurement_is_a_table_with_errors(here: Path):
    make()
    head, *lines = measure().splitlines()
    assert head.split() == ["value", "±", "error"]
    table = {line[:14].strip(): line[14:].split() for line in lines[:7]}
    assert list(table) == ["FID ↓", "FID∞ ↓", "sFID ↓", "IS ↑", "KID (10⁻³) ↓", "Precision ↑", "Recall ↑"]
    assert all(len(each) == 2 for each in table.values())
    assert lines[7].startswith("41 images against real (42 images, sha256 ")
    assert lines[8] == "features of narrow, resize none; IS in groups of 5,000, KID in blocks of 41, k = 3"


def test_json_and_the_file_hold_every_number(here: Path):
    make()
    row = json.loads(measure("--json", "--output", "row.json", "--kid-block-size", "20", "--neighbours", "2"))
    artifact = load_json("row.json", "measurement")
    assert artifact.content == row
    assert artifact.manifest.inputs.keys() == {"images", "extractor", "reference"}
    assert (row["kid_block_size"], row["neighbours"], row["reference"], row["images"]) == (20, 2, "real", 41)
    assert f"{row['fid']:.2f}" in measure("--kid-block-size", "20")


def test_images_against_others_need_neither_reference_nor_extractor(here: Path):
    Path("real/41.png").unlink()
    row = json.loads(printed("measure", "samples", "--against", "real", "--json"))
    mse = np.square((PIXELS[1:42].astype(float) - PIXELS[:41]) / 255).mean()
    assert row["mse"] == pytest.approx(mse, rel=1e-12)
    lines = printed("measure", "samples", "--against", "real").splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["PSNR", "(dB)"], ["MSE", "(10⁻³)"]]
    assert "PSNR is infinite" in printed("measure", "real", "--against", "real")


def test_statistics_alone_say_what_they_are_too_little_for(here: Path):
    np.savez("fits.npz", mu=np.zeros(8), sigma=np.eye(8))
    lines = printed("reference", "fits.npz", "--extractor", "extractor.safetensors", "--device", "cpu")
    assert lines.startswith("fits.safetensors: fits, statistics without images, sha256 ")
    found = printed(
        *("measure", "samples", "--reference", "fits.safetensors"),
        *("--extractor", "extractor.safetensors", "--device", "cpu"),
    )
    assert "the reference is statistics alone, without images: no sFID, KID, precision and recall" in found
    assert [line.split()[0] for line in found.splitlines()[1:4]] == ["FID", "FID∞", "IS"]
    assert "Precision" not in found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("measure", "samples"), "nothing to compare with; add --reference FILE"),
        (("measure", "smaples", "--against", "real"), "smaples: no such folder or file; expected a folder of PNG"),
        (("measure", "samples", "--reference", "none.safetensors"), r"none.safetensors: no such file"),
        (("reference", "real", "--size", "8x"), "--size: '8x'; expected a number of pixels, like 256"),
        (("reference", "real", "--background", "whitish"), "--background: 'whitish' is no colour"),
        (("reference", "real", "--resize", "clean-fid"), "extractor narrow resizes by none, not by pil-bicubic-299"),
        (("reference", "empty"), "empty: no image in it or its subfolders"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(here: Path, arguments: tuple[str, ...], message: str):
    Path("empty").mkdir()
    extractor = ("--extractor", "extractor.safetensors") if arguments[0] == "reference" else ()
    assert message in refused(*arguments, *extractor, "--device", "cpu")


def test_an_extractor_is_never_guessed_nor_exchanged(here: Path):
    make()
    arguments = ("measure", "samples", "--reference", "real.safetensors", "--device", "cpu")
    assert "made with extractor narrow; name its file by --extractor" in refused(*arguments)
    torch.manual_seed(1)
    save_extractor(Path("other.safetensors"), Classifier(3, 10, width=8), "other", Manifest(kind="extractor"))
    said = refused(*arguments, "--extractor", "other.safetensors")
    assert "made with extractor narrow (" in said
    assert "would be seen by other (" in said


def test_missing_weights_of_inception_say_where_to_get_them(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(here))
    said = refused("reference", "real", "--device", "cpu")
    assert f"the Inception weights are not part of quest: download {inceptions.WEIGHTS_URL}" in said


def test_the_resizing_of_a_reference_is_that_of_what_is_measured(here: Path, monkeypatch: pytest.MonkeyPatch):
    weights = inceptions.InceptionExtractor(_Mean(), inceptions.NAME, "6" * 64, "cpu")
    monkeypatch.setattr(inceptions, "load", lambda path, device: weights)
    assert "resize pil-bicubic-299" in printed("reference", "real", "--resize", "clean-fid", "--device", "cpu")
    arguments = ("measure", "samples", "--reference", "real.safetensors", "--device", "cpu")
    row: dict[str, Any] = json.loads(printed(*arguments, "--json"))
    assert (row["extractor"], row["resize"]) == (inceptions.NAME, "pil-bicubic-299")
    said = refused(*arguments, "--resize", "pytorch-fid")
    assert "resized by pil-bicubic-299, but those to measure would be by pytorch-bilinear-299" in said


class _Mean(torch.nn.Module):
    """What Inception's extractor touches of a network: a mixed block, and the classifier last."""

    def __init__(self) -> None:
        super().__init__()
        self.Mixed_6d = _Mixed()
        self.fc = torch.nn.Linear(3, 2)
        self.requires_grad_(False)


class _Mixed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch1x1 = torch.nn.AdaptiveAvgPool2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.branch1x1(x)
