"""Choosing prompts from a text file and from COCO's captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from quest.cli import main
from quest.diffusion.conditions import read_prompts
from quest.sources import prompts


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    """Two captions for each of 50 images, in no order."""
    annotations = [
        {"image_id": image, "id": 1000 * which + image, "caption": f"caption {which} of\n image {image} \n"}
        for which in (2, 1)
        for image in range(50, 0, -1)
    ]
    file = tmp_path / "captions.json"
    file.write_text(json.dumps({"info": {}, "annotations": annotations}))
    return file


def test_one_caption_of_each_image(captions: Path) -> None:
    assert prompts.coco_captions(captions) == [f"caption 1 of image {image}" for image in range(1, 51)]


def test_choice_is_of_the_seed(captions: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "prompts.txt"

    def chosen(seed: int, count: int = 20) -> list[str]:
        prompts.choose(captions, output, count, seed)
        return read_prompts(output)

    first = chosen(1)
    assert len(set(first)) == 20
    assert first == chosen(1)
    assert first != chosen(2)
    assert sorted(chosen(3, 50)) == sorted(prompts.coco_captions(captions))


def test_order_of_the_annotations_does_not_matter(captions: Path, tmp_path: Path) -> None:
    content = json.loads(captions.read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"annotations": content["annotations"][::-1]}))
    assert prompts.coco_captions(other) == prompts.coco_captions(captions)


def test_text_file(tmp_path: Path) -> None:
    source, output = tmp_path / "all.txt", tmp_path / "prompts.txt"
    source.write_text("a cat\na dog\nein Mädchen\n", encoding="utf-8")
    arguments = ["prompts", str(source), "--output", str(output), "--count", "2", "--seed", "0"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    lines = read_prompts(output)
    assert len(lines) == 2
    assert set(lines) < {"a cat", "a dog", "ein Mädchen"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("all.txt", "a cat\n", "--count: 2, but .*all.txt has 1 prompts"),
        ("all.txt", "a cat\n\na dog\n", "line 2 is empty"),
        ("all.json", "{", "not valid JSON"),
        ("all.json", "[]", "found no list of annotations with image_id, id and caption"),
        ("all.json", {"annotations": [{"image_id": 1, "id": 1}]}, "'caption'"),
        ("all.json", {"annotations": [{"image_id": 1, "id": 1, "caption": " "}] * 2}, "captions are empty"),
        ("all.json", None, "No such file.*expected COCO's captions"),
    ],
)
def test_what_cannot_be_used(tmp_path: Path, name: str, content: Any, message: str) -> None:
    source, output = tmp_path / name, tmp_path / "prompts.txt"
    if content is not None:
        source.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message):
        prompts.choose(source, output, 2, 0)
    assert not output.exists()
