"""Records of Snakemake beside the results: collected after a run, put back where results were fetched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from quest.artifacts import ArtifactError
from workflow import records

TABLE, METRICS = "results/tables/digits.json", "results/metrics/digits/quest-w4a4-seed0.json"


def place(root: Path, name: str) -> Path:
    return root / records.METADATA / records._encoded(name)


def note(root: Path, name: str, inputs: list[str], **more: object) -> None:
    file = place(root, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"rule": "any", "input": inputs, "incomplete": False, **more}))


def write(root: Path, name: str, content: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(content)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A project with a table, made of metrics, made of images that are not there any more."""
    root = tmp_path / "run"
    write(root, TABLE, "a table")
    write(root, METRICS, "a number")
    note(root, TABLE, [METRICS])
    note(root, METRICS, ["results/samples/digits/quest-w4a4-seed0.0.safetensors"])
    note(root, "results/samples/digits/quest-w4a4-seed0.0.safetensors", [])
    note(root, "results/tables/old.json", [])  # of a result that is gone, and nothing here was made of
    note(root, "results/tables/digits-quick.json", [])
    write(root, "results/tables/digits-quick.json", "a trial")
    return root


def clone(run: Path, to: Path) -> Path:
    """The same project elsewhere, as DVC brings it: results without Snakemake's folder."""
    shutil.copytree(run / "results", to / "results")
    return to


def test_records_of_what_is_there_and_of_what_it_was_made_from(run: Path) -> None:
    records.collect(run)
    lines = {
        folder: [json.loads(line) for line in (run / "results" / folder / "records.json").read_text().splitlines()]
        for folder in ("tables", "metrics", "samples")
    }
    assert [line["file"] for line in lines["tables"]] == [TABLE]
    assert [line["file"] for line in lines["metrics"]] == [METRICS]
    assert lines["samples"][0]["sha256"] is None
    assert lines["tables"][0]["record"]["input"] == [METRICS]


def test_a_clone_gets_them_back_byte_for_byte(run: Path, tmp_path: Path) -> None:
    records.collect(run)
    other = clone(run, tmp_path / "clone")
    records.restore(other)
    for name in (TABLE, METRICS, "results/samples/digits/quest-w4a4-seed0.0.safetensors"):
        assert json.loads(place(other, name).read_text()) == json.loads(place(run, name).read_text())
    assert not place(other, "results/tables/old.json").exists()


def test_a_record_is_not_put_to_another_result(run: Path, tmp_path: Path) -> None:
    records.collect(run)
    other = clone(run, tmp_path / "clone")
    write(other, TABLE, "another table")
    assert records.restore(other) == [TABLE]
    assert not place(other, TABLE).exists()
    assert place(other, METRICS).exists()


def test_a_result_of_which_nothing_is_known_is_made_again(run: Path, tmp_path: Path) -> None:
    """Snakemake asks the time alone of what it has no record of; all that is fetched is new. Models are anybody's."""
    stale = "results/tables/shapes.json"
    marks = [tmp_path / "clone" / records.INCOMPLETE / records._encoded(name) for name in (stale, TABLE)]
    records.collect(run)
    write(run, stale, "of older code")
    write(run, "data/models/digits/denoiser.safetensors", "brought")
    write(run, f"data/models/{records.NAME}", "")
    other = clone(run, tmp_path / "clone")
    shutil.copytree(run / "data", other / "data")
    assert records.restore(other) == [stale]
    assert [mark.exists() for mark in marks] == [True, False]
    assert records.restore(other) == [], "once"


def test_what_a_run_recorded_since_stays(run: Path) -> None:
    records.collect(run)
    note(run, TABLE, [METRICS], code="newer")
    records.restore(run)  # nothing came
    assert json.loads(place(run, TABLE).read_text())["code"] == "newer"


def test_what_came_since_replaces_what_was_recorded(run: Path, tmp_path: Path) -> None:
    records.collect(run)
    other = clone(run, tmp_path / "clone")
    records.restore(other)
    note(run, TABLE, [METRICS], code="newer")
    write(run, TABLE, "a newer table")
    records.collect(run)
    shutil.copytree(run / "results", other / "results", dirs_exist_ok=True)
    records.restore(other)
    assert json.loads(place(other, TABLE).read_text())["code"] == "newer"


def test_collecting_again_writes_the_same_bytes_and_touches_nothing(run: Path) -> None:
    records.collect(run)
    file = run / "results/tables/records.json"
    before = file.stat().st_mtime_ns
    records.collect(run)
    assert file.stat().st_mtime_ns == before


def test_a_record_says_the_machine_of_its_job_and_keeps_it(run: Path, tmp_path: Path) -> None:
    def machines(root: Path) -> list[str | None]:
        return [
            json.loads((root / f"results/{folder}/records.json").read_text().splitlines()[0]).get("machine")
            for folder in ("tables", "metrics")
        ]

    note(run, METRICS, [], starttime=1, endtime=2)
    records.collect(run)
    assert machines(run) == [None, None]
    note(run, TABLE, [METRICS], starttime=3, endtime=4)
    records.collect(run, "a laptop")
    assert machines(run) == ["a laptop", None], "of what came before nobody knows"
    other = clone(run, tmp_path / "clone")
    records.restore(other)
    note(other, METRICS, [], starttime=5, endtime=6)
    records.collect(other, "a server")
    assert machines(other) == ["a laptop", "a server"]


def test_incomplete_and_damaged_records_are_left_out(run: Path) -> None:
    note(run, TABLE, [METRICS], incomplete=True)
    place(run, METRICS).write_text("{half")
    records.collect(run)
    assert not (run / "results/tables/records.json").exists()
    assert not (run / "results/metrics/records.json").exists()


@pytest.mark.parametrize("damage", [b"{half", b'{"file": "x"}', b"\xff\xfe", b"[1]"])
def test_a_damaged_collection_is_named(run: Path, tmp_path: Path, damage: bytes) -> None:
    records.collect(run)
    other = clone(run, tmp_path / "clone")
    (other / "results/tables/records.json").write_bytes(damage)
    with pytest.raises(ArtifactError, match=r"results/tables/records\.json: damaged; `dvc checkout"):
        records.restore(other)


def test_a_long_path_is_kept_where_snakemake_keeps_it() -> None:
    name = f"results/paper/{'long-' * 60}/table.json"
    assert records._decoded(records._encoded(name)) == name
    assert all(len(part) <= 255 for part in records._encoded(name).split("/"))
