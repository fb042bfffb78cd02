"""Failures of a generator whose direction is known, on real digits and the features of a trained classifier."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, cross_entropy

from quest.config.evaluation import EvaluationSettings
from quest.embedded import images as embedded
from quest.metrics import evaluation
from quest.metrics.extractor import Classifier, ClassifierExtractor
from quest.metrics.reference import Reference, reduce

SETTINGS = EvaluationSettings(images=800, inception_split_size=200, kid_block_size=100)


@pytest.fixture(scope="module")
def extractor() -> ClassifierExtractor:
    """Trained for some seconds, so that its features tell digits apart."""
    images, labels = embedded.digits()
    x = images.float() / 127.5 - 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = Classifier(1, 10)
        optimizer = torch.optim.AdamW(classifier.parameters(), 3e-3)
        for _ in range(60):
            batch = torch.randint(0, len(x), (128,))
            optimizer.zero_grad()
            cross_entropy(classifier(x[batch]), labels[batch]).backward()
            optimizer.step()
    return ClassifierExtractor(classifier, "test", "t" * 64, "cpu")


@pytest.fixture(scope="module")
def halves() -> tuple[Tensor, Tensor, Tensor]:
    """Real images, 800 others that stand for good samples, and the labels of those."""
    images, labels = embedded.digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order[800:]], images[order[:800]], labels[order[:800]]


@pytest.fixture(scope="module")
def real(extractor: ClassifierExtractor, halves: tuple[Tensor, Tensor, Tensor]) -> Reference:
    return reduce([halves[0]], len(halves[0]), extractor, "digits")


def measured(images: Tensor, real: Reference, extractor: ClassifierExtractor) -> dict[str, Any]:
    accumulator = evaluation.start(SETTINGS, len(images), extractor)
    evaluation.take_in(accumulator, 0, images, extractor)
    return evaluation.numbers(accumulator, real, SETTINGS, "cpu")


def test_mode_collapse_lowers_recall(extractor: ClassifierExtractor, halves: Any, real: Reference):
    _, good, labels = halves
    few = good[labels < 2]
    collapsed = few[torch.arange(800) % len(few)]
    whole, broken = measured(good, real, extractor), measured(collapsed, real, extractor)
    assert broken["recall"] < 0.5 * whole["recall"]
    assert broken["precision"] > 0.8 * whole["precision"]
    assert broken["is"] < 0.7 * whole["is"]
    for name in ("fid", "sfid", "kid", "fid_infinity"):
        assert broken[name] > 2 * abs(whole[name])


def test_blur_lowers_precision(extractor: ClassifierExtractor, halves: Any, real: Reference):
    _, good, _ = halves
    blurred = avg_pool2d(good.float(), 5, stride=1, padding=2).round().to(torch.uint8)
    whole, broken = measured(good, real, extractor), measured(blurred, real, extractor)
    assert broken["precision"] < 0.7 * whole["precision"]
    for name in ("fid", "sfid", "kid"):
        assert broken[name] > 2 * abs(whole[name])


def test_real_images_are_within_errors_of_real_images(extractor: ClassifierExtractor, halves: Any, real: Reference):
    row = measured(halves[1], real, extractor)
    assert abs(row["kid"]) < 4 * row["kid_se"]
    assert abs(row["fid_infinity"]) < row["fid"]
    assert row["precision"] > 0.7
    assert row["recall"] > 0.7
