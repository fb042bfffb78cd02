"""The feature extractor: shapes, errors and its file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from quest.artifacts import ArtifactError, Manifest, save_tensors
from quest.metrics.extractor import SPATIAL_CHANNELS, Classifier, ClassifierExtractor, load_extractor, save_extractor


@pytest.fixture
def classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier(1, 10)


def images(count: int, size: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, size, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_features(classifier: Classifier) -> None:
    features = ClassifierExtractor(classifier, "digits", "", "cpu")(images(5))
    assert features.pooled.shape == (5, 64)
    assert features.spatial.shape == (5, SPATIAL_CHANNELS * 4 * 4)
    assert features.logits.shape == (5, 10)
    maps = features.spatial.view(5, SPATIAL_CHANNELS, -1)
    torch.testing.assert_close(maps.mean(2), features.pooled[:, :SPATIAL_CHANNELS])
    x = images(5).float() / 127.5 - 1
    assert torch.equal(classifier.eval()(x), features.logits), "no dropout"


def test_batches_do_not_matter(classifier: Classifier) -> None:
    extractor = ClassifierExtractor(classifier, "digits", "", "cpu")
    whole = extractor(images(11))
    for batch_size in (1, 4, 11):
        for part, expected in zip(extractor(images(11), batch_size), whole, strict=True):
            torch.testing.assert_close(part, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(2, 1, 16, 16),
        torch.zeros(2, 3, 16, 16, dtype=torch.uint8),
        torch.zeros(1, 16, 16, dtype=torch.uint8),
        torch.zeros(2, 16, 16, 1, dtype=torch.uint8),
    ],
)
def test_other_images(classifier: Classifier, wrong: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"extractor digits: found images .*, expected \(N, 1, H, W\) torch.uint8"):
        ClassifierExtractor(classifier, "digits", "", "cpu")(wrong)


def test_round_trip(classifier: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "extractor.safetensors"
    classifier.half().float()  # weights are stored in half precision
    manifest = save_extractor(path, classifier, "digits", Manifest(kind="", notes={"accuracy": 0.9}))
    loaded = load_extractor(path)
    assert (loaded.name, loaded.sha256) == ("digits", manifest.sha256)
    assert manifest.notes["accuracy"] == 0.9
    expected = ClassifierExtractor(classifier, "digits", "", "cpu")(images(3))
    assert all(torch.equal(*pair) for pair in zip(loaded(images(3)), expected, strict=True))


def test_files_that_do_not_fit(classifier: Classifier, model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="kind 'model' where 'extractor' is expected"):
        load_extractor(model_file)
    path = tmp_path / "extractor.safetensors"
    with pytest.raises(ArtifactError, match="no such file"):
        load_extractor(path)
    notes = {"name": "digits", "channels": 1, "classes": 11}
    save_tensors(path, classifier.state_dict(), Manifest(kind="extractor", notes=notes))
    with pytest.raises(ArtifactError, match=r"(?s)weights do not fit the extractor.*head\.weight"):
        load_extractor(path)
