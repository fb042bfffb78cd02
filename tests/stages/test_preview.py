"""Previews: the first images of a cell, as they are, and nothing of another shard."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from quest.artifacts import ArtifactError, Manifest, load_tensors, save_tensors
from quest.stages import preview


def write_shard(path: Path, images: int, first: int = 0, kind: str = "samples") -> str:
    """A shard of noise, and its sha256."""
    tensor = torch.randint(0, 256, (images, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    manifest = Manifest(
        kind=kind,
        settings={"sampler": {"steps": 4}},
        seeds={"run": 7},
        notes={"method": "quest", "bits": "w4a4", "first": first, "shard": 0, "shards": 2},
    )
    return save_tensors(path, {"images": tensor}, manifest).sha256


@pytest.mark.parametrize(("images", "kept"), [(100, 64), (64, 64), (5, 5)])
def test_the_first_images_are_kept_as_they_are(tmp_path: Path, images: int, kept: int) -> None:
    samples, output = tmp_path / "samples.safetensors", tmp_path / "preview.safetensors"
    sha256 = write_shard(samples, images)
    preview.run(samples, output)
    artifact = load_tensors(output, "preview")
    assert list(artifact.tensors) == ["images"]
    assert torch.equal(artifact.tensors["images"], load_tensors(samples, "samples").tensors["images"][:kept])
    assert artifact.manifest.notes == {"method": "quest", "bits": "w4a4", "first": 0}
    assert artifact.manifest.seeds == {"run": 7}
    assert artifact.manifest.settings == {"sampler": {"steps": 4}}
    assert artifact.manifest.inputs == {"samples": sha256}


def test_another_shard_is_refused(tmp_path: Path) -> None:
    samples, output = tmp_path / "samples.safetensors", tmp_path / "preview.safetensors"
    write_shard(samples, 4, first=50)
    with pytest.raises(ValueError, match=r"samples\.safetensors: begins with image 50; expected the first shard"):
        preview.run(samples, output)
    assert not output.exists()


def test_another_artifact_is_refused(tmp_path: Path) -> None:
    samples, output = tmp_path / "samples.safetensors", tmp_path / "preview.safetensors"
    write_shard(samples, 4, kind="preview")
    with pytest.raises(ArtifactError, match="kind 'preview' where 'samples' is expected"):
        preview.run(samples, output)
    assert not output.exists()
