"""A flipped bit in a result, in a record or in the store is found, and the file is named."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from project import Plan, Project
from snakemake.exceptions import WorkflowError

from quest.artifacts import ArtifactError
from workflow import damage, records

SCORE = "results/scores/digits/quest-w4a4-seed0.json"
TABLE = "results/tables/digits.md"
SAMPLES = "results/samples/digits/quest-w4a4-seed0.0.safetensors"


ROOT = Path(__file__).parents[2]
FOLDERS = ("results/scores", "results/tables")
DIGEST = hashlib.md5(f"content of {SCORE}".encode()).hexdigest()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder in which three results were made and recorded."""
    for name in (SCORE, TABLE, SAMPLES):
        write(tmp_path / name, f"content of {name}")
        write(own_record(tmp_path, name), json.dumps({"rule": "some", "input": [], "starttime": 1.0}))
    records.collect(tmp_path)
    return tmp_path


def own_record(root: Path, name: str) -> Path:
    return root / records.METADATA / records._encoded(name)


def write(file: Path, content: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)


def flip(file: Path, bit: int = 1) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= bit
    file.chmod(0o644)
    file.write_bytes(content)


def test_whole_results_pass(root: Path) -> None:
    damage.refuse(root)
    assert list(damage.everything(root)) == []
    assert set(records.expected(root)) == {SCORE, TABLE, SAMPLES}


@pytest.mark.parametrize("name", [SCORE, TABLE])
def test_a_flipped_bit_in_what_has_no_checksum_is_refused(root: Path, name: str) -> None:
    flip(root / name)
    with pytest.raises(ArtifactError, match=rf"{name}: damaged .sha256 is .*; delete it, then `dvc pull {name}` or"):
        damage.refuse(root)
    (root / name).unlink()
    damage.refuse(root)


def test_artifacts_are_looked_at_when_everything_is(root: Path) -> None:
    flip(root / SAMPLES)
    damage.refuse(root)
    assert [sentence.split(":")[0] for sentence in damage.everything(root)] == [SAMPLES]


def test_what_was_made_since_the_collection_is_no_damage(root: Path) -> None:
    """A run that was killed has collected nothing."""
    write(root / SCORE, "another")
    write(own_record(root, SCORE), json.dumps({"rule": "some", "input": [], "starttime": 2.0}))
    write(root / TABLE, "half")
    write(root / records.INCOMPLETE / records._encoded(TABLE), "{}")
    damage.refuse(root)
    assert set(records.expected(root)) == {SAMPLES}


def test_a_clone_without_records_of_its_own_finds_damage_too(root: Path) -> None:
    shutil.rmtree(root / ".snakemake")
    flip(root / SCORE)
    with pytest.raises(ArtifactError, match=SCORE):
        damage.refuse(root)


BROKEN = {
    "no UTF-8": b'{"rule": "\xff"}',
    "cut": b'{"rule": "so',
    "empty": b"",
    "a list": b"[1]",
    "another type": b'{"rule": "some", "input": 3}',
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_damaged_record_is_put_back(root: Path, content: bytes) -> None:
    whole = own_record(root, SCORE).read_text()
    own_record(root, SCORE).write_bytes(content)
    assert records.mend(root) == []
    assert json.loads(own_record(root, SCORE).read_text()) == json.loads(whole)
    assert records.mend(root) == []


def test_a_result_whose_record_cannot_be_had_is_made_again(root: Path) -> None:
    (root / "results/scores" / records.NAME).unlink()
    own_record(root, SCORE).write_bytes(BROKEN["cut"])
    own_record(root, "results/gone.json").write_bytes(BROKEN["cut"])
    assert records.mend(root) == [SCORE]
    assert not own_record(root, SCORE).exists()
    assert (root / records.INCOMPLETE / records._encoded(SCORE)).exists()
    assert not (root / records.INCOMPLETE / records._encoded("results/gone.json")).exists()


@pytest.mark.workflow
@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_plan_survives_a_damaged_record(finished: Project, content: bytes) -> None:
    own_record(finished.root, SCORE).write_bytes(content)
    assert not Plan(finished).jobs


@pytest.mark.workflow
def test_a_plan_refuses_a_damaged_score(finished: Project) -> None:
    flip(finished.root / SCORE)
    with pytest.raises(WorkflowError, match=rf"{SCORE}: damaged"):
        Plan(finished)


def object_of(file: Path, folder: Path) -> Path:
    """Where DVC keeps the content of a file."""
    name = hashlib.md5(file.read_bytes()).hexdigest()
    return folder / "files/md5" / name[:2] / name[2:]


@pytest.mark.workflow
def test_a_damaged_store_is_not_pulled_and_the_file_is_named(root: Path, stub_environment: Path) -> None:
    project = Project(root, stub_environment)
    (root / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc/config", root / ".dvc/config")
    project.run("git", "init", "--quiet")
    project.run("dvc", "add", "--quiet", *FOLDERS)
    project.run("dvc", "push", "--quiet")
    flip(object_of(root / SCORE, root / "data/store"))
    shutil.rmtree(root / damage.CACHE)
    shutil.rmtree(root / "results/scores")

    said = project.run("dvc", "pull", *FOLDERS, check=False)
    assert "Checkout failed for following targets:\nresults/scores" in said
    assert not (root / SCORE).exists()
    assert not (root / damage.CACHE / "files/md5" / DIGEST[:2] / DIGEST[2:]).exists()
    assert (root / TABLE).read_text() == f"content of {TABLE}"
    assert [re.sub(r"/\w{30}:", ":", sentence) for sentence in damage.everything(root)] == [
        f"data/store/files/md5/{DIGEST[:2]}: damaged; it is {SCORE}; restore it from git or another clone"
    ]


@pytest.mark.workflow
def test_dvc_does_not_keep_what_a_kill_left(root: Path, stub_environment: Path) -> None:
    project = Project(root, stub_environment)
    (root / ".dvc").mkdir()
    for name in (".dvc/config", ".dvcignore"):
        shutil.copy(ROOT / name, root / name)
    for left in (".quest-w4a4-seed0.a1b2c3d4.partial.json", "quest-w4a4-seed1.progress.safetensors"):
        write((root / SCORE).with_name(left), "half")
    project.run("git", "init", "--quiet")
    project.run("dvc", "add", "--quiet", "results/scores")
    kept = {name for names in damage._outputs(root).values() for name in names}
    assert kept == {"results/scores", f"results/scores/{records.NAME}", SCORE}


def test_a_damaged_object_of_the_cache_is_named(tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = []
    write(tmp_path / "result", "content")
    name = object_of(tmp_path / "result", tmp_path / damage.CACHE)
    write(name, "content")
    entries.append({"md5": name.parent.name + name.name, "relpath": "digits/a.json"})
    write(tmp_path / "listing", json.dumps(entries))
    listing = object_of(tmp_path / "listing", tmp_path / damage.CACHE)
    listing = listing.with_name(listing.name + ".dir")
    write(listing, json.dumps(entries))
    whole = listing.parent.name + listing.name
    write(
        tmp_path / "dvc.lock", json.dumps({"stages": {"score": {"outs": [{"path": "results/scores", "md5": whole}]}}})
    )
    assert list(damage.everything(tmp_path)) == []
    flip(name)
    assert list(damage.everything(tmp_path)) == [
        f"{name.relative_to(tmp_path)}: damaged; it is results/scores/digits/a.json; "
        "delete it, and `dvc pull` fetches it again"
    ]
