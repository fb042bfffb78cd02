"""Measurements of folders: those of the `measure` stage to the last digit, and those of statistics made with NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from miniature import inception
from numpy.typing import NDArray
from own_images import pixels, save_folder
from PIL import Image

from quest.artifacts import Manifest, load_json, save_tensors
from quest.config.dataset import DatasetSettings
from quest.metrics.distances import FrechetDistance, fit
from quest.metrics.extractor import load_extractor
from quest.metrics.own import measurement, reference
from quest.metrics.own.fits import ARRAYS
from quest.metrics.own.images import Reading, open_for, open_images
from quest.metrics.own.resizing import resized
from quest.stages import measure as stage
from quest.stages import reference as reference_stage

CPU = torch.device("cpu")
HOW = Reading()
REAL, SAMPLES, TARGETS = pixels(0, 80), pixels(1, 60) // 2 + 40, pixels(1, 60)
CHOICES = {"inception_split_size": 30, "kid_block_size": 20, "neighbours": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of real images, samples, and their targets."""
    root = tmp_path_factory.mktemp("own")
    for name, images in (("real", REAL), ("samples", SAMPLES), ("targets", TARGETS)):
        save_folder(root / name, images)
    return root


def measured(reference_file: Path, source: Path, extractor_file: Path, **choices: int) -> dict[str, Any]:
    extractor, known = load_extractor(extractor_file), reference.load(reference_file)
    images = open_images(source, 3, HOW)
    settings = measurement.choices(images.count, known, **choices)
    return measurement.measure(images, known, extractor, settings, CPU)


def own_reference(folder: Path, source: Path, extractor_file: Path) -> Path:
    file = folder / "reference.safetensors"
    reference.write(file, source, "real", load_extractor(extractor_file), HOW)
    return file


def row_of_the_stage(folder: Path, extractor: Path) -> tuple[dict[str, Any], Path]:
    """What the stages give of the same images; and their reference."""
    np.savez(folder / "real.npz", arr_0=REAL)
    settings = DatasetSettings.model_validate(
        {
            "title": "t",
            "model": "m",
            "extractor": "e",
            "image_size": 16,
            "image_channels": 3,
            "reference_batch": folder / "real.npz",
            "evaluation": {"images": 60} | CHOICES,
        }
    )
    real, model, output = (folder / f"{name}.safetensors" for name in ("real", "model", "row"))
    reference_stage.run("real", settings, extractor, real, CPU)
    origin = save_tensors(model, {"weight": torch.zeros(1)}, Manifest(kind="model"))
    shards = []
    for method, images in (("nearest", SAMPLES), ("fp", TARGETS)):
        notes = {"method": method, "bits": "w32a32", "first": 0, "shard": 0, "shards": 1}
        manifest = Manifest(kind="samples", seeds={"run": 0}, inputs={"model": origin.sha256}, notes=notes)
        shards.append(folder / f"{method}.safetensors")
        save_tensors(shards[-1], {"images": torch.from_numpy(images.transpose(0, 3, 1, 2).copy())}, manifest)
    stage.run("real", settings, [shards[0]], [shards[1]], real, extractor, None, model, output, CPU)
    return load_json(output, "metrics").content, real


def test_every_number_is_the_stages_to_the_last_digit(folder: Path, tmp_path: Path, narrow_extractor: Path):
    expected, real = row_of_the_stage(tmp_path, narrow_extractor)
    for reference_file in (own_reference(tmp_path, folder / "real", narrow_extractor), real):
        row = measured(reference_file, folder / "samples", narrow_extractor, **CHOICES)
        row |= measurement.closeness(open_images(folder / "samples", 3, HOW), open_images(folder / "targets", 3, HOW))
        assert expected.keys() - row.keys() == {"dataset", "method", "bits", "seed", "chain_seed"}
        shared = row.keys() & expected.keys() - {"reference_sha256"}
        assert {name: row[name] for name in shared} == {name: expected[name] for name in shared}
        assert row["without"] is None
        numbers = ("fid", "fid_se", "fid_infinity", "sfid_se", "is_se", "kid_se", "precision_se", "recall_se", "psnr")
        assert all(isinstance(row[name], float) for name in numbers)


def features(images: NDArray[np.uint8], extractor: Path) -> NDArray[np.float64]:
    return load_extractor(extractor)(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).pooled.double().numpy()


def test_statistics_made_with_numpy_give_numpys_fid(folder: Path, tmp_path: Path, narrow_extractor: Path):
    """As pytorch-fid writes and compares them."""
    real, samples = (features(images, narrow_extractor) for images in (REAL, SAMPLES))
    mu, sigma = real.mean(0), np.cov(real, rowvar=False)
    np.savez_compressed(tmp_path / "fits.npz", mu=mu, sigma=sigma)
    row = measured(
        own_reference(tmp_path, tmp_path / "fits.npz", narrow_extractor), folder / "samples", narrow_extractor
    )
    other = np.cov(samples, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(sigma @ other).real.clip(0)).sum()
    expected = ((mu - samples.mean(0)) ** 2).sum() + np.trace(sigma + other) - 2 * root
    assert row["fid"] == pytest.approx(expected, rel=1e-6)

    whole = measured(own_reference(tmp_path, folder / "real", narrow_extractor), folder / "samples", narrow_extractor)
    for name in ("fid", "fid_se", "fid_infinity", "fid_infinity_se", "is", "is_se", "is_unshuffled"):
        assert row[name] == pytest.approx(whole[name], rel=1e-9), name
    for name in ("sfid", "sfid_se", "kid", "kid_se", "precision", "precision_se", "recall", "recall_se"):
        assert row[name] is None
        assert whole[name] is not None
    assert row["without"] == ("the reference is statistics alone, without images: no sFID, KID, precision and recall")
    assert row["reference_images"] is None


def test_spatial_statistics_give_sfid(folder: Path, tmp_path: Path, narrow_extractor: Path):
    images = torch.from_numpy(REAL.transpose(0, 3, 1, 2).copy())
    found = load_extractor(narrow_extractor)(images)
    fitted = {}
    for (mean, covariance), rows in zip(ARRAYS.values(), (found.pooled, found.spatial), strict=True):
        values = rows.double().numpy()
        fitted |= {mean: values.mean(0), covariance: np.cov(values, rowvar=False)}
    np.savez(tmp_path / "fits.npz", **fitted)
    row = measured(
        own_reference(tmp_path, tmp_path / "fits.npz", narrow_extractor), folder / "samples", narrow_extractor
    )
    whole = measured(own_reference(tmp_path, folder / "real", narrow_extractor), folder / "samples", narrow_extractor)
    for name in ("fid", "sfid", "sfid_se"):
        assert row[name] == pytest.approx(whole[name], rel=1e-6)
    assert row["without"].endswith("no KID, precision and recall")


def test_the_stage_refuses_a_reference_without_images(tmp_path: Path, narrow_extractor: Path):
    np.savez(tmp_path / "fits.npz", mu=np.zeros(8), sigma=np.eye(8))
    file = own_reference(tmp_path, tmp_path / "fits.npz", narrow_extractor)
    protocol = {"title": "t", "model": "m", "extractor": "e", "image_size": 16, "image_channels": 3}
    settings = DatasetSettings.model_validate(protocol)
    with pytest.raises(ValueError, match="of images of size None, but image_size is 16"):
        stage.run("t", settings, [], [], file, narrow_extractor, None, tmp_path, tmp_path / "row.json", CPU)


def test_images_of_several_sizes_are_measured_by_an_extractor_that_resizes(tmp_path: Path):
    """Each from its own size: the same numbers as of images that were resized one by one before."""
    extractor = resized(inception(), "pil-bicubic-299")
    keep = Reading(other_sizes="keep")
    for name, seed in (("real", 0), ("samples", 1)):
        folder = save_folder(tmp_path / name, pixels(seed, 40))
        for number, image in enumerate(pixels(seed, 4, 24, 16)):
            Image.fromarray(image).save(folder / f"{number}5.png")
    file = tmp_path / "reference.safetensors"
    reference.write(file, tmp_path / "real", "real", extractor, keep)
    known = reference.load(file)
    assert (known.size, known.real.images) == (None, 44)
    images = open_for(extractor, tmp_path / "samples", keep)
    row = measurement.measure(images, known, extractor, measurement.choices(44, known), CPU)
    seen = [
        extractor(torch.from_numpy(np.array(Image.open(tmp_path / name / file))).permute(2, 0, 1)[None]).pooled
        for name in ("real", "samples")
        for file in images.names
    ]
    real, samples = torch.cat(seen).split(44)
    assert row["fid"] == pytest.approx(FrechetDistance(fit(real))(fit(samples)), rel=1e-6)


def test_a_set_is_at_no_distance_from_itself(folder: Path, tmp_path: Path, narrow_extractor: Path):
    row = measured(own_reference(tmp_path, folder / "real", narrow_extractor), folder / "real", narrow_extractor)
    assert row["fid"] == pytest.approx(0, abs=1e-9)
    assert (row["precision"], row["recall"]) == (1, 1)
    assert row["kid_block_size"] == 80


def test_one_image_has_no_distance(folder: Path, tmp_path: Path, narrow_extractor: Path):
    known = reference.load(own_reference(tmp_path, folder / "real", narrow_extractor))
    with pytest.raises(ValueError, match="one image; distances between sets need at least two"):
        measurement.choices(1, known)


def test_closeness_is_of_all_values_of_all_pairs(folder: Path):
    row = measurement.closeness(open_images(folder / "samples", 3, HOW), open_images(folder / "targets", 3, HOW))
    mse = np.square((SAMPLES.astype(float) - TARGETS) / 255).mean()
    assert row["mse"] == pytest.approx(mse, rel=1e-12)
    assert row["psnr"] == pytest.approx(-10 * np.log10(mse), rel=1e-12)
    same = open_images(folder / "samples", 3, HOW)
    assert measurement.closeness(same, same) | {"against_sha256": ""} == {
        "psnr": None,
        "mse": 0.0,
        "against_sha256": "",
    }


def test_images_without_a_partner_are_named(folder: Path, tmp_path: Path):
    samples = open_images(folder / "samples", 3, HOW)
    fewer = save_folder(tmp_path / "fewer", TARGETS[:58])
    (fewer / "057.png").rename(fewer / "other.png")
    with pytest.raises(ValueError, match=r"samples lacks other\.png; .*fewer lacks 057\.png, 058\.png, 059\.png$"):
        measurement.closeness(samples, open_images(fewer, 3, HOW))
    larger = save_folder(tmp_path / "larger", pixels(1, 60, 16, 24))
    with pytest.raises(ValueError, match=r"larger: images of 16×24, those of .*samples are of 16×16"):
        measurement.closeness(samples, open_images(larger, 3, HOW))


def test_batches_pair_by_place(folder: Path, tmp_path: Path):
    files = [tmp_path / name for name in ("samples.npz", "targets.npz", "fewer.npz")]
    for file, images in zip(files, (SAMPLES, TARGETS, TARGETS[:9]), strict=True):
        np.savez(file, arr_0=images)
    samples, targets, fewer = (open_images(file, 3, HOW) for file in files)
    folders = [open_images(folder / name, 3, HOW) for name in ("samples", "targets")]
    assert measurement.closeness(samples, targets)["mse"] == measurement.closeness(*folders)["mse"]
    with pytest.raises(ValueError, match=r"fewer\.npz: 9 images, but .*samples\.npz has 60"):
        measurement.closeness(samples, fewer)
    with pytest.raises(ValueError, match="pair by name in folders and by place in batches"):
        measurement.closeness(samples, folders[1])
