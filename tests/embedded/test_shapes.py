"""Drawn shapes: the same whatever the batch, and what their captions say."""

from __future__ import annotations

import pytest
import torch

from quest.embedded import shapes
from quest.embedded.images import labelled_images


def test_a_picture_does_not_depend_on_its_batch() -> None:
    images, labels = shapes.draw("tests", range(40))
    assert (images.shape, images.dtype, labels.dtype) == ((40, 3, 32, 32), torch.uint8, torch.int64)
    for indices in ([7], [39, 0, 12]):
        some, of_some = shapes.draw("tests", indices)
        assert torch.equal(some, images[indices])
        assert torch.equal(of_some, labels[indices])
    others, _ = shapes.draw("other", range(40))
    assert not torch.equal(others, images)
    assert len(images.flatten(1).unique(dim=0)) == 40


def test_reference_is_another_stream_than_training() -> None:
    reference, _ = labelled_images("shapes", 32, 50)
    training, _ = labelled_images("shapes", 32, 50, "pretrain/0")
    assert not set(map(bytes, reference.flatten(1).numpy())) & set(map(bytes, training.flatten(1).numpy()))


def test_labels_captions_and_classes_agree() -> None:
    assert len(set(shapes.CAPTIONS)) == shapes.LABELS == 240
    assert shapes.CAPTIONS[0] == "a small red circle on a green background"
    for label, caption in enumerate(shapes.CAPTIONS):
        size, colour, shape, background = shapes.attributes(label)
        assert caption.split() == ["a", size, colour, shape, "on", "a", background, "background"]
        assert shapes.LABEL_OF[caption] == label
        assert colour != background
        index = shapes.SHAPES.index(shape) * len(shapes.COLOURS) + shapes.COLOURS.index(colour)
        assert shapes.class_of(label) == index


def test_every_label_is_equally_likely() -> None:
    _, labels = shapes.draw("tests", range(12_000), 4)
    counts = labels.bincount(minlength=shapes.LABELS).float()
    assert counts.min() > 20
    assert counts.std() < 1.3 * counts.mean().sqrt()


def test_pictures_show_what_their_captions_say() -> None:
    images, labels = shapes.draw("tests", range(500))
    # The four corners show the background whatever the shape, the colour farthest from it is the shape's.
    corners = images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert torch.equal(corners.amin(2), corners.amax(2)), "one plain background"
    background = corners[:, :, 0]
    gap = (images.int() - background.int()[:, :, None, None]).abs().sum(1).flatten(1)
    colour = images.flatten(2).gather(2, gap.argmax(1).view(-1, 1, 1).expand(-1, 3, 1))[:, :, 0]
    palette = torch.tensor(shapes._RGB)
    area = (gap > gap.amax(1, keepdim=True) / 2).sum(1)
    areas: dict[tuple[str, str], list[int]] = {}
    for index, label in enumerate(labels.tolist()):
        words = shapes.attributes(label)
        for found, word in ((background[index], words.background), (colour[index], words.colour)):
            nearest = (palette - found.int()).abs().sum(1).argmin()
            assert shapes.BACKGROUNDS[nearest] == word
        areas.setdefault((words.shape, words.size), []).append(int(area[index]))
    for shape in shapes.SHAPES:
        assert max(areas[shape, "small"]) < min(areas[shape, "large"])
    fill = {shape: sum(areas[shape, "large"]) / len(areas[shape, "large"]) for shape in shapes.SHAPES}
    assert fill["star"] < fill["cross"] < fill["circle"]


def test_shapes_differ_by_their_symmetry() -> None:
    grid = torch.linspace(-1.2, 1.2, 25)
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    inside = {name: distance(x, y) < 0 for name, distance in shapes._DISTANCES.items()}
    assert not inside["ring"][12, 12]
    assert all(inside[name][12, 12] for name in shapes.SHAPES if name != "ring")
    for name in ("circle", "square", "cross", "ring"):
        assert torch.equal(inside[name], inside[name].rot90()), name
    for name in ("triangle", "star"):
        assert torch.equal(inside[name], inside[name].flip(1)), name
        assert not torch.equal(inside[name], inside[name].flip(0)), name


def test_prompts() -> None:
    prompts = shapes.captions(100, 0)
    assert prompts == shapes.captions(100, 0)
    assert prompts[:50] == shapes.captions(50, 0)
    assert prompts != shapes.captions(100, 1)
    assert set(prompts) <= set(shapes.CAPTIONS)


@pytest.mark.parametrize("size", [16, 32])
def test_sizes(size: int) -> None:
    assert shapes.draw("tests", range(2), size)[0].shape == (2, 3, size, size)
