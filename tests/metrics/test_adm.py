"""Batches of ADM's layout: read a part at a time, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from quest.artifacts import ArtifactError, Manifest, load_tensors
from quest.cli import main
from quest.config.dataset import DatasetSettings
from quest.config.reading import validate
from quest.config.values import ConfigError
from quest.metrics import adm, evaluation, reference
from quest.metrics.extractor import Classifier, load_extractor, save_extractor
from quest.stages import reference as references

CPU = torch.device("cpu")
IMAGES = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)


def write(path: Path, **arrays: Any) -> Path:
    content: dict[str, Any] = {"arr_0": IMAGES} | arrays
    np.savez(path, **content)
    return path


def statistics(width: int = 64, spatial: int = 128) -> dict[str, Any]:
    return {"mu": np.zeros(width), "sigma": np.eye(width), "mu_s": np.ones(spatial), "sigma_s": 2 * np.eye(spatial)}


@pytest.fixture
def extractor(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "extractor.safetensors"
    save_extractor(path, Classifier(3, 10), "tiny", Manifest(kind="extractor"))
    return path


def settings(batch: Path, **changes: Any) -> DatasetSettings:
    content = {
        "title": "batch",
        "model": "m",
        "extractor": "e",
        "image_size": 16,
        "image_channels": 3,
        "reference_batch": str(batch),
    }
    return validate(DatasetSettings, content | changes, "tests")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_come_in_parts_channels_first(tmp_path: Path, save: Any):
    save(tmp_path / "b.npz", arr_0=IMAGES, arr_1=np.arange(30))
    batch = adm.open_batch(tmp_path / "b.npz")
    parts = list(batch.images(7))
    assert [len(part) for part in parts] == [7, 7, 7, 7, 2]
    assert np.array_equal(torch.cat(parts).numpy(), IMAGES.transpose(0, 3, 1, 2))
    assert (batch.shape, batch.statistics) == ((30, 16, 16, 3), None)


def test_statistics_are_read_with_an_unknown_number_of_rows(tmp_path: Path):
    batch = adm.open_batch(write(tmp_path / "b.npz", **statistics()))
    assert batch.statistics is not None
    mean, covariance, rows = batch.statistics["spatial"]
    assert (mean[0].item(), covariance[0, 0].item(), covariance.dtype, rows) == (1, 2, torch.float64, None)


def test_the_reference_of_a_batch_with_statistics(tmp_path: Path, extractor: Path):
    path = write(tmp_path / "b.npz", **statistics())
    references.run("batch", settings(path), extractor, tmp_path / "r.safetensors", CPU)
    real = reference.load(tmp_path / "r.safetensors")
    assert (real.images, real.image_size, len(real.pooled)) == (None, 16, 30)
    assert torch.equal(real.gaussians["pooled"].covariance, torch.eye(64).double())
    manifest = load_tensors(tmp_path / "r.safetensors", "reference").manifest
    assert manifest.inputs["batch"] == adm.open_batch(path).sha256
    assert manifest.settings["reference_batch"] == "b.npz"


def test_the_reference_of_a_batch_of_images_is_theirs(tmp_path: Path, extractor: Path):
    references.run("batch", settings(write(tmp_path / "b.npz")), extractor, tmp_path / "r.safetensors", CPU)
    real = reference.load(tmp_path / "r.safetensors")
    features = load_extractor(extractor)(torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy()))
    assert real.images == 30
    torch.testing.assert_close(real.gaussians["pooled"].mean, features.pooled.double().mean(0))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"arr_0": IMAGES.astype(np.float32)},
            r"arr_0 is \(30, 16, 16, 3\) float32, expected images \(N, H, W, C\) uint8",
        ),
        ({"arr_0": IMAGES[:0]}, r"arr_0 is \(0, 16, 16, 3\)"),
        ({"arr_0": IMAGES[0]}, r"arr_0 is \(16, 16, 3\)"),
        ({"mu": np.zeros(4)}, "has only mu of mu, sigma, mu_s, sigma_s"),
        (statistics() | {"sigma": np.eye(3)}, r"pooled mean \(64,\) with covariance \(3, 3\)"),
        (statistics() | {"mu_s": np.full(128, np.nan)}, "spatial statistics hold NaN"),
    ],
)
def test_batches_of_another_layout_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str):
    with pytest.raises(ArtifactError, match=message):
        adm.open_batch(write(tmp_path / "b.npz", **arrays))


def test_a_batch_without_images_is_refused(tmp_path: Path):
    np.savez(tmp_path / "b.npz", mu=np.zeros(3))
    with pytest.raises(ArtifactError, match="has mu; expected images as arr_0"):
        adm.open_batch(tmp_path / "b.npz")


def test_a_missing_or_corrupt_batch_is_refused(tmp_path: Path):
    path = tmp_path / "b.npz"
    with pytest.raises(ArtifactError, match="no such file"):
        adm.open_batch(path)
    data = bytearray(write(path).read_bytes())
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ArtifactError, match="corrupt"):
        adm.open_batch(path)
    data[len(data) // 2] ^= 1  # one pixel
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="corrupt"):
        list(adm.open_batch(path).images(8))


def test_another_batch_than_the_protocol_names_is_refused(tmp_path: Path, extractor: Path):
    path = write(tmp_path / "b.npz")
    output = tmp_path / "r.safetensors"
    with pytest.raises(ArtifactError, match="expected 000000000000…; it is another reference"):
        references.run("batch", settings(path, reference_sha256="0" * 64), extractor, output, CPU)
    with pytest.raises(ValueError, match=re.escape("images are (16, 16, 3), the protocol's")):
        references.run("batch", settings(path, image_size=32), extractor, output, CPU)
    with pytest.raises(ValueError, match="its statistics are of 2048 features, tiny has 64"):
        references.run("batch", settings(write(path, **statistics(2048))), extractor, output, CPU)
    assert not output.exists()


def test_a_table_has_one_reference(tmp_path: Path):
    with pytest.raises(ConfigError, match="real_images and reference_batch are both set"):
        settings(tmp_path / "b.npz", real_images="digits")


def test_the_evaluator_measures_two_batches(tmp_path: Path, extractor: Path):
    noisy = (IMAGES // 2 * 2 + 1).astype(np.uint8)
    real, samples = write(tmp_path / "real.npz"), write(tmp_path / "samples.npz", arr_0=noisy)
    result = CliRunner().invoke(
        main,
        f"bench evaluator --samples {samples} --reference {real} --extractor {extractor} --device cpu --published",
    )
    assert result.exit_code == 0, result.output
    row, end = json.JSONDecoder().raw_decode(result.stdout)
    assert (row["images"], row["reference_images"], row["extractor"]) == (30, 30, "tiny")
    assert row["precision"] == row["recall"] == 1
    assert row["reference_sha256"] == adm.open_batch(real).sha256
    assert row["samples_sha256"] == adm.open_batch(samples).sha256
    assert re.search(r"^fid: \S+, ADM prints 3\.9426", result.stdout[end:], re.MULTILINE)


def test_the_evaluator_refuses_batches_of_two_sizes(tmp_path: Path, extractor: Path):
    real, samples = write(tmp_path / "real.npz"), write(tmp_path / "samples.npz", arr_0=IMAGES[:, :8, :8])
    with pytest.raises(ValueError, match=r"images are \(16, 16, 3\), those of .* are \(8, 8, 3\)"):
        evaluation.of_batches(samples, real, extractor, "cpu")
