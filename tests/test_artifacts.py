"""Artifacts are whole or absent, found corrupt by any byte, and the same bytes from the same content."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from quest.artifacts import (
    ArtifactError,
    Manifest,
    atomic,
    listed,
    load_json,
    load_tensors,
    plain,
    save_json,
    save_tensors,
    write_bytes,
)
from quest.config.sampling import SamplerSettings

MANIFEST = Manifest(
    kind="toy",
    settings={"lr": 1e-05, "granularity": {"4": "per_channel"}},
    seeds={"run": 3},
    inputs={"model": "ab" * 32},
    notes={"title": "α, β", "losses": [0.30000000000000004, 2.5e-07]},
)
CONTENT = {
    "fid": 0.30000000000000004,
    "lr": 1e-05,
    "psnr": None,
    "rows": [{"method": "quest", "name": "é"}],
    "images": 7,
}
TENSORS = {
    "codes": torch.arange(-8, 8, dtype=torch.int8).reshape(4, 4),
    "scale": torch.tensor(0.1),
    "half": torch.linspace(-1, 1, 5).half(),
    "brain": torch.linspace(-1, 1, 5).bfloat16(),
    "mask": torch.tensor([True, False]),
    "statistics": torch.eye(3, dtype=torch.float64),
    "none": torch.zeros(0, 3),
}


@pytest.fixture(params=["safetensors", "json"])
def artifact(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An artifact of kind "toy" in each of the formats."""
    path = tmp_path / f"toy.{request.param}"
    if request.param == "json":
        save_json(path, CONTENT, MANIFEST)
    else:
        save_tensors(path, TENSORS, MANIFEST)
    return path


def load(path: Path, kind: str = "toy") -> Any:
    return load_json(path, kind) if path.suffix == ".json" else load_tensors(path, kind)


def test_tensors_come_back_as_they_were(tmp_path: Path):
    written = save_tensors(tmp_path / "toy.safetensors", TENSORS, MANIFEST)
    artifact = load_tensors(tmp_path / "toy.safetensors", "toy")
    assert set(artifact.tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert artifact.tensors[name].dtype == tensor.dtype
        assert torch.equal(artifact.tensors[name], tensor)
    assert artifact.manifest == written


def test_tensors_of_any_layout_come_back(tmp_path: Path):
    whole = torch.arange(24.0).reshape(4, 6)
    parameter = torch.nn.Parameter(whole[1:3])
    save_tensors(tmp_path / "t.safetensors", {"transposed": whole.T, "slice": whole[:, ::2], "p": parameter}, MANIFEST)
    tensors = load_tensors(tmp_path / "t.safetensors", "toy").tensors
    assert torch.equal(tensors["transposed"], whole.T)
    assert torch.equal(tensors["slice"], whole[:, ::2])
    assert torch.equal(tensors["p"], whole[1:3])


def test_json_comes_back_as_it_was(tmp_path: Path):
    written = save_json(tmp_path / "toy.json", CONTENT, MANIFEST)
    artifact = load_json(tmp_path / "toy.json", "toy")
    assert artifact.content == CONTENT
    assert artifact.manifest == written


def test_the_manifest_is_kept_and_completed(artifact: Path):
    manifest = load(artifact).manifest
    for name in ("kind", "settings", "seeds", "inputs", "notes"):
        assert getattr(manifest, name) == getattr(MANIFEST, name)
    assert len(manifest.sha256) == 64
    assert manifest.versions["torch"] == torch.__version__


def test_equal_content_gives_equal_bytes(artifact: Path, tmp_path: Path):
    again = tmp_path / "elsewhere" / artifact.name
    if artifact.suffix == ".json":
        save_json(again, dict(reversed(CONTENT.items())), MANIFEST)
    else:
        save_tensors(again, dict(reversed(TENSORS.items())), MANIFEST)
    assert again.read_bytes() == artifact.read_bytes()


def test_the_digest_depends_on_content_and_manifest(tmp_path: Path):
    digests = {
        save_json(tmp_path / "a.json", CONTENT, MANIFEST).sha256,
        save_json(tmp_path / "b.json", CONTENT | {"fid": 1}, MANIFEST).sha256,
        save_json(tmp_path / "c.json", CONTENT, Manifest(kind="toy", seeds={"run": 4})).sha256,
    }
    assert len(digests) == 3


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80], ids=hex)
def test_a_flipped_bit_anywhere_is_found(artifact: Path, flip: int):
    data = artifact.read_bytes()
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= flip
        artifact.write_bytes(changed)
        with pytest.raises(ArtifactError):
            load(artifact)  # a failure shows which byte: ``position``


def test_a_cut_file_is_found_and_the_way_out_named(artifact: Path):
    data = artifact.read_bytes()
    for length in (0, 1, 8, len(data) // 2, len(data) - 1):
        artifact.write_bytes(data[:length])
        with pytest.raises(ArtifactError, match=r"corrupt .*; delete it, then `dvc pull .*toy.*` or `snakemake"):
            load(artifact)


def test_a_longer_file_is_found(artifact: Path):
    artifact.write_bytes(artifact.read_bytes() + b"x")
    with pytest.raises(ArtifactError, match="corrupt"):
        load(artifact)


def test_another_kind_is_refused(artifact: Path):
    with pytest.raises(ArtifactError, match="an artifact of kind 'toy' where 'samples' is expected"):
        load(artifact, "samples")


def test_a_missing_file_says_how_to_get_it(tmp_path: Path):
    for name in ("toy.json", "toy.safetensors"):
        with pytest.raises(ArtifactError, match=rf"{name}: no such file; `snakemake .*{name}` makes it, or `dvc pull"):
            load(tmp_path / name)


def test_a_folder_is_no_artifact(tmp_path: Path):
    (tmp_path / "toy.json").mkdir()
    with pytest.raises(ArtifactError, match="no such file"):
        load(tmp_path / "toy.json")


def test_a_strangers_file_is_refused(tmp_path: Path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(ArtifactError, match="without quest's manifest"):
        load(tmp_path / "plain.safetensors")
    for text in ("[1, 2]", '{"content": 1}', '{"manifest": 1, "content": 1}', '{"manifest": {}, "content": 1}', "null"):
        (tmp_path / "plain.json").write_text(text)
        with pytest.raises(ArtifactError, match="corrupt"):
            load(tmp_path / "plain.json")


def test_another_schema_version_says_to_make_it_again(tmp_path: Path):
    save_json(tmp_path / "old.json", CONTENT, MANIFEST)
    document = json.loads((tmp_path / "old.json").read_text())
    # Of a version whose manifest had other fields.
    document["manifest"] = {"schema_version": 0, "kind": "toy", "made_by": "x"}
    (tmp_path / "old.json").write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=r"artifact schema 0, this quest reads 1; make it again with `snakemake"):
        load(tmp_path / "old.json")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_json_never_holds_what_is_no_json(tmp_path: Path, number: float):
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_json(tmp_path / "toy.json", {"fid": number}, MANIFEST)
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_found_before_anything_is_written(artifact: Path, monkeypatch: pytest.MonkeyPatch):
    before = artifact.read_bytes()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**30, 2**30 - 2**20, 2**20))
    with pytest.raises(ArtifactError, match=r"and 16 MiB to spare, but 1.0 MiB are free there; free some space"):
        write_bytes(artifact, b"new")
    assert artifact.read_bytes() == before
    assert list(artifact.parent.iterdir()) == [artifact]


def test_a_disk_that_fills_up_leaves_the_old_file(artifact: Path, monkeypatch: pytest.MonkeyPatch):
    before = artifact.read_bytes()

    def half_written(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", half_written)
        with pytest.raises(ArtifactError, match=r"could not be written .No space left on device.; nothing was left"):
            write_bytes(artifact, b"new content")
    assert artifact.read_bytes() == before
    assert list(artifact.parent.iterdir()) == [artifact]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_write_leaves_the_old_file(artifact: Path, interruption: type[BaseException]):
    before = artifact.read_bytes()

    def write() -> None:
        with atomic(artifact) as partial:
            partial.write_bytes(b"half")
            raise interruption

    with pytest.raises(interruption):
        write()
    assert artifact.read_bytes() == before
    assert list(artifact.parent.iterdir()) == [artifact]


def test_the_new_file_appears_only_when_the_block_ends(tmp_path: Path):
    path = tmp_path / "new" / "file.txt"
    with atomic(path) as partial:
        partial.write_text("content")
        assert not path.exists()
        assert partial.suffix == ".txt"  # some writers choose the format by it
    assert path.read_text() == "content"
    assert list(path.parent.iterdir()) == [path]


KILLED = """
import os, sys
from pathlib import Path
from quest.artifacts import atomic
with atomic(Path(sys.argv[1])) as partial:
    partial.write_text("half")
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_process_was_writing_is_removed_by_the_next_write(tmp_path: Path):
    path, other = tmp_path / "a.json", tmp_path / "b.json"
    for target in (path, other):
        subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False)
    assert len(list(tmp_path.iterdir())) == 2
    assert listed(tmp_path, "*.json") == []
    write_bytes(path, b"whole")
    assert listed(tmp_path, "*") == [path]
    assert len(list(tmp_path.iterdir())) == 2  # what was for the other file is the other's
    with atomic(other) as living:
        write_bytes(other, b"by another process, faster")
        assert living.exists()
        living.write_text("slower")
    assert other.read_text() == "slower"
    assert sorted(tmp_path.iterdir()) == [path, other]


def test_a_place_that_cannot_be_written_is_an_artifact_error(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match="could not be written"):
        write_bytes(tmp_path / "file" / "toy.json", b"x")


def test_settings_in_a_manifest_are_plain_json():
    given = {"steps": 2, "timesteps": (900, 100)}
    others = {"kind": "ddim", "eta": 0.0, "spacing": "uniform", "guidance_scale": 1.0}
    assert plain(SamplerSettings.model_validate(given)) == others | {"steps": 2, "timesteps": [900, 100]}
