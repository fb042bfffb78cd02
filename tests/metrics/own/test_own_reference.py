"""References of folders, batches and published statistics: what the stage makes of the same images, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from miniature import WIDTH, inception
from own_images import pixels, save_folder

from quest.artifacts import ArtifactError, load_tensors
from quest.config.dataset import DatasetSettings
from quest.metrics.extractor import load_extractor
from quest.metrics.own import fits, reference
from quest.metrics.own.images import Reading
from quest.metrics.own.reference import require_alike
from quest.metrics.own.resizing import resized
from quest.stages import reference as stage

CPU = torch.device("cpu")
HOW = Reading()


def statistics(width: int = 8, **more: Any) -> dict[str, Any]:
    return {"mu": np.zeros(width), "sigma": np.eye(width)} | more


def test_a_folder_gives_what_the_stage_gives_of_the_same_images(tmp_path: Path, narrow_extractor: Path):
    images = pixels(0)
    folder = save_folder(tmp_path / "real", images)
    np.savez(tmp_path / "real.npz", arr_0=images)
    protocol = {
        "title": "t",
        "model": "m",
        "extractor": "e",
        "image_size": 16,
        "image_channels": 3,
        "reference_batch": tmp_path / "real.npz",
    }
    stage.run("real", DatasetSettings.model_validate(protocol), narrow_extractor, tmp_path / "stage.safetensors", CPU)
    expected = load_tensors(tmp_path / "stage.safetensors", "reference")
    extractor = load_extractor(narrow_extractor)
    for source in (folder, tmp_path / "real.npz"):
        reference.write(tmp_path / "own.safetensors", source, "real", extractor, HOW)
        own = load_tensors(tmp_path / "own.safetensors", "reference")
        assert own.tensors.keys() == expected.tensors.keys()
        assert all(torch.equal(own.tensors[name], expected.tensors[name]) for name in own.tensors)
        assert own.manifest.notes == expected.manifest.notes | {"found": {}}
        assert own.manifest.inputs["extractor"] == extractor.sha256


def test_what_was_read_and_how_stands_in_the_manifest(tmp_path: Path, narrow_extractor: Path):
    folder = save_folder(tmp_path / "real", pixels(0, 6, 16, 24))
    (folder / "notes.txt").write_text("")
    how = Reading(other_sizes="skip", background=(1, 2, 3), skip_broken=True)
    manifest, found = reference.write(
        tmp_path / "r.safetensors", folder, "flowers", load_extractor(narrow_extractor), how, (16, 24)
    )
    assert manifest.settings["source"] == "real"
    assert manifest.settings["image_size"] == [16, 24]
    assert manifest.settings["reading"] == {
        "other_sizes": "skip",
        "background": (1, 2, 3),
        "skip_broken": True,
    }
    assert manifest.notes["found"] == {"other files": 1}
    assert found["other files"].names == ("notes.txt",)
    known = reference.load(tmp_path / "r.safetensors")
    assert (known.size, known.resize, known.real.dataset, known.real.images) == ((16, 24), "none", "flowers", 6)
    assert known.has_features
    assert known.has_spatial


def test_published_statistics_are_all_that_is_known(tmp_path: Path, narrow_extractor: Path):
    np.savez(tmp_path / "fits.npz", mu=np.arange(8.0), sigma=2 * np.eye(8))
    reference.write(tmp_path / "r.safetensors", tmp_path / "fits.npz", "fits", load_extractor(narrow_extractor), HOW)
    known = reference.load(tmp_path / "r.safetensors")
    assert (known.size, known.real.images, known.has_features, known.has_spatial) == (None, None, False, False)
    mean, covariance, rows = known.real.gaussians["pooled"]
    assert mean.tolist() == list(range(8))
    assert torch.equal(covariance, 2 * torch.eye(8).double())
    assert rows is None


def test_adms_statistics_of_a_larger_set_stand_before_those_of_its_images(tmp_path: Path, narrow_extractor: Path):
    spatial = {"mu_s": np.zeros(128), "sigma_s": np.eye(128)}
    np.savez(tmp_path / "adm.npz", arr_0=pixels(0), **statistics(**spatial))
    reference.write(tmp_path / "r.safetensors", tmp_path / "adm.npz", "adm", load_extractor(narrow_extractor), HOW)
    known = reference.load(tmp_path / "r.safetensors")
    assert (known.real.images, len(known.real.pooled)) == (None, 60)
    assert torch.equal(known.real.gaussians["spatial"].covariance, torch.eye(128).double())


def test_how_the_images_of_statistics_were_resized_has_to_be_said(tmp_path: Path):
    np.savez(tmp_path / "fits.npz", **statistics(WIDTH))
    output = tmp_path / "r.safetensors"
    extractor = resized(inception(), "pil-bicubic-299")
    with pytest.raises(ValueError, match="do not say how the images were resized; add --resize pytorch-fid"):
        reference.write(output, tmp_path / "fits.npz", "fits", extractor, HOW, resize_named=False)
    reference.write(output, tmp_path / "fits.npz", "fits", extractor, HOW, resize_named=True)
    assert reference.load(output).resize == "pil-bicubic-299"
    np.savez(tmp_path / "adm.npz", **statistics(WIDTH, mu_s=np.zeros(4), sigma_s=np.eye(4)))
    with pytest.raises(ValueError, match="mu_s and sigma_s are of ADM's evaluator, which resizes by tf1-bilinear-299"):
        reference.write(output, tmp_path / "adm.npz", "adm", extractor, HOW, resize_named=True)
    reference.write(output, tmp_path / "adm.npz", "adm", inception(), HOW, resize_named=False)
    assert reference.load(output).has_spatial


def test_statistics_of_another_network_are_refused(tmp_path: Path, narrow_extractor: Path):
    np.savez(tmp_path / "fits.npz", **statistics(2048))
    with pytest.raises(ValueError, match="are of 2048 features, narrow has 8; they were made with another network"):
        reference.write(
            tmp_path / "r.safetensors", tmp_path / "fits.npz", "fits", load_extractor(narrow_extractor), HOW
        )
    assert not (tmp_path / "r.safetensors").exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3)}, r"has mu; expected images as arr_0, or statistics as mu and sigma"),
        ({"feats": np.zeros((5, 3))}, r"has feats; expected images"),
        ({"mu": np.zeros((3, 3)), "sigma": np.eye(3)}, r"a mean \(3, 3\) with a covariance \(3, 3\)"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"a mean \(3,\) with a covariance \(4, 4\)"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "hold NaN"),
        ({"mu": np.zeros(3, int), "sigma": np.eye(3)}, "statistics of int64 and float64; expected floats"),
        ({"mu": np.zeros(3), "sigma": -np.eye(3)}, "sigma is no covariance"),
        ({"mu": np.zeros(3), "sigma": np.eye(3) + np.triu(np.ones((3, 3)), 1)}, "sigma is no covariance"),
    ],
)
def test_what_are_no_statistics_is_refused(tmp_path: Path, arrays: dict[str, Any], message: str):
    file = tmp_path / "fits.npz"
    np.savez(file, **arrays)
    with pytest.raises(ArtifactError, match=message):
        fits.read(file)


def test_a_corrupt_file_is_refused(tmp_path: Path):
    file = tmp_path / "fits.npz"
    np.savez(file, **statistics())
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(ArtifactError, match="corrupt"):
        fits.read(file)


def test_one_image_is_no_reference(tmp_path: Path, narrow_extractor: Path):
    folder = save_folder(tmp_path / "real", pixels(0, 1))
    with pytest.raises(ValueError, match="one image; a covariance needs at least two"):
        reference.write(tmp_path / "r.safetensors", folder, "r", load_extractor(narrow_extractor), HOW)


def test_features_of_two_extractors_or_kinds_of_resizing_are_never_compared(tmp_path: Path):
    file = tmp_path / "r.safetensors"
    reference.write(file, save_folder(tmp_path / "real", pixels(0, 4)), "r", inception(), HOW)
    known = reference.load(file)
    require_alike(known, inception(), file)
    with pytest.raises(ValueError, match=r"extractor inception-fid \(666666666666…\), .* by other \(777777777777…\)"):
        require_alike(known, inception("other", "7" * 64), file)
    with pytest.raises(ValueError, match="resized by tf1-bilinear-299, but those to measure would be by pil-bicubic"):
        require_alike(known, resized(inception(), "pil-bicubic-299"), file)
