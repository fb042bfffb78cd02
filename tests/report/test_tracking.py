"""MLflow against a real SQLite store: one run a key, whatever is logged again, by whom, and after what."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from result_files import CELLS, row, write_all, write_metrics

from quest.artifacts import ArtifactError, Manifest, load_json, save_json
from quest.config.reading import validate
from quest.report import paper, tables, tracking
from quest.report.published import Published
from quest.stages import table as table_stage

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # MLflow reads it when it is imported

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new store, whose migrations take seconds, to be copied."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    tracking._create_database(path)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder without a store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture
def store(folder: Path, empty_store: Path) -> MlflowClient:
    """A client of the new store in the working folder."""
    shutil.copy(empty_store, folder / "mlflow.db")
    return client_of(folder)


def client_of(folder: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")


def make_table(folder: Path, metrics: list[Path] | None = None, dataset: str = "digits") -> Path:
    output = folder / "results" / "tables" / f"{dataset}.json"
    metrics = metrics or write_all(folder / "metrics" / dataset, dataset=dataset)
    table_stage.run(dataset, metrics, output)
    return output


def make_figure(folder: Path, dataset: str = "digits", name: str = "samples", content: bytes = b"png") -> Path:
    file = folder / "results" / "figures" / dataset / f"{name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def active(client: MlflowClient) -> dict[str, Run]:
    """The active runs by key; fails when a key has two."""
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    found = {run.data.tags["quest.key"]: run for run in runs}
    assert len(found) == len(runs)
    return found


def logged(client: MlflowClient, run: Run, name: str, folder: Path) -> pd.DataFrame:
    return pd.read_json(client.download_artifacts(run.info.run_id, f"tables/{name}.json", str(folder)), orient="split")


def test_a_run_for_each_row_and_one_for_the_table(store: MlflowClient, folder: Path):
    tracking.run([make_table(folder)], [make_figure(folder)], None)
    runs = active(store)
    assert set(runs) == {"digits/table"} | {f"digits/{method}-{bits}-seed0" for method, bits in CELLS}

    quest = runs["digits/quest-w4a4-seed0"]
    assert quest.info.status == "FINISHED"
    assert quest.info.run_name == "digits/quest-w4a4-seed0"
    assert quest.data.metrics == {
        name: pytest.approx(value)
        for name, value in row().items()
        if name in (*tables.METRICS, "is_std", "fid_se", "weight_mib", "gbops", "layers")
    }
    expected = {
        "method": "quest",
        "bits": "w4a4",
        "seed": "0",
        "chain_seed": "0",
        "images": "1000",
        "activation_granularity": "per_channel",
        "sampler.steps": "20",
        "methods.quest.sets": "20",
        "evaluation.neighbours": "3",
    }
    assert expected.items() <= quest.data.params.items()
    assert quest.data.tags["quest.input.model"] == "m" * 64


def test_the_table_run_holds_tables_figures_and_hashes(store: MlflowClient, folder: Path):
    file = make_table(folder)
    tracking.run([file], [make_figure(folder), make_figure(folder, name="comparison")], None)
    run = active(store)["digits/table"]
    assert {item.path for item in store.list_artifacts(run.info.run_id, "figures")} == {
        "figures/samples.png",
        "figures/comparison.png",
    }
    summary = logged(store, run, "summary", folder)
    assert list(summary["method"]) == ["fp", "nearest", "quest", "nearest", "quest"]
    assert list(summary["fid"]) == [r["fid"] for r in load_json(file, "table").content["summary"]]
    assert len(logged(store, run, "rows", folder)) == len(CELLS)
    assert run.data.metrics["quest-w4a4/fid"] == 40
    assert run.data.tags["quest.input.digits/quest-w4a4-seed0"]
    assert "QuEST" in run.data.tags["mlflow.note.content"]


def test_rows_hold_their_sample_grid_and_the_versions_of_the_code(store: MlflowClient, folder: Path):
    table = make_table(folder, write_all(folder / "metrics", seeds=2))
    tracking.run([table], [make_figure(folder), make_figure(folder, name="comparison")], None)
    runs = active(store)
    files = {
        seed: [item.path for item in store.list_artifacts(runs[f"digits/quest-w4a4-seed{seed}"].info.run_id, "figures")]
        for seed in (0, 1)
    }
    assert files == {0: ["figures/samples.png"], 1: []}, "the grid shows the first seed"
    versions = load_json(table, "table").content["sources"]["digits/quest-w4a4-seed0"]["versions"]
    assert "quest-diffusion" in versions
    tags = runs["digits/quest-w4a4-seed0"].data.tags
    assert versions.items() <= {key.removeprefix("quest.version."): value for key, value in tags.items()}.items()


def test_variants_and_tables_of_the_papers(store: MlflowClient, folder: Path):
    metrics = [write_metrics(folder, row("quest+no-local-loss"))]
    rows = [{"method": "quest+no-local-loss", "bits": "w4a4"}]
    table = {"title": "A table", "source": "a paper", "columns": ["fid"], "rows": rows}
    place = {"datasets": {}, "tables": {"small": table}}
    measured = {file: load_json(file, "metrics") for file in metrics}
    content, _ = paper.build("small", "digits", validate(Published, place, "tests"), measured, "", folder)
    save_json(folder / "small.json", content, Manifest(kind="paper"))
    output = folder / "tracking.json"
    tracking.run([make_table(folder, metrics)], [], output, [folder / "small.json"])
    runs = active(store)
    assert set(runs) == {"digits/quest+no-local-loss-w4a4-seed0", "digits/table", "digits/paper/small"}
    assert runs["digits/table"].data.metrics["quest:no-local-loss-w4a4/fid"] == 40
    assert runs["digits/paper/small"].data.params == {"dataset": "digits", "table": "small", "title": "A table"}
    assert list(logged(store, runs["digits/paper/small"], "table", folder)["fid"]) == [40]
    assert set(load_json(output, "tracking").manifest.inputs) == {"digits", "digits/paper/small"}


def test_a_rerun_changes_nothing_and_is_quick(store: MlflowClient, folder: Path, monkeypatch: pytest.MonkeyPatch):
    table, figure = make_table(folder), make_figure(folder)
    tracking.run([table], [figure], None)
    before = {key: run.to_dictionary() for key, run in active(store).items()}

    def written(*_: Any, **__: Any) -> None:
        raise AssertionError("a run was written again")

    for name in ("create_run", "log_batch", "log_table", "delete_run", "set_tag"):
        monkeypatch.setattr(MlflowClient, name, written)
    tracking.run([table], [figure], None)
    assert {key: run.to_dictionary() for key, run in active(store).items()} == before


def test_changed_metrics_update_their_run_alone(store: MlflowClient, folder: Path):
    tracking.run([make_table(folder)], [], None)
    before = active(store)
    changed = write_metrics(folder / "metrics" / "digits", row(fid=12.5))
    others = [file for file in (folder / "metrics" / "digits").glob("*.json") if file != changed]
    tracking.run([make_table(folder, [changed, *others])], [], None)
    after = active(store)
    assert {key: run.info.run_id for key, run in after.items()} == {key: run.info.run_id for key, run in before.items()}
    assert after["digits/quest-w4a4-seed0"].data.metrics["fid"] == 12.5
    assert after["digits/table"].data.metrics["quest-w4a4/fid"] == 12.5
    # Logged tables are replaced: MLflow by itself would append.
    assert len(logged(store, after["digits/table"], "rows", folder)) == len(CELLS)
    assert 12.5 in set(logged(store, after["digits/table"], "summary", folder)["fid"])


def test_changed_settings_replace_the_run(store: MlflowClient, folder: Path):
    tracking.run([make_table(folder)], [], None)
    before = active(store)
    changed = write_metrics(
        folder / "metrics" / "digits", row(), {"settings": {"methods": {"quest": {"sets": 10, "cma_epochs": 3}}}}
    )
    others = [file for file in (folder / "metrics" / "digits").glob("*.json") if file != changed]
    tracking.run([make_table(folder, [changed, *others])], [], None)
    after = active(store)
    key = "digits/quest-w4a4-seed0"
    assert after[key].data.params["methods.quest.sets"] == "10"
    assert after[key].data.params["methods.quest.cma_epochs"] == "3"
    assert after[key].info.run_id != before[key].info.run_id
    deleted = store.search_runs([after[key].info.experiment_id], run_view_type=ViewType.DELETED_ONLY)
    assert [run.info.run_id for run in deleted] == [before[key].info.run_id]


def test_a_metric_that_is_gone_does_not_linger(store: MlflowClient, folder: Path):
    tracking.run([make_table(folder, [write_metrics(folder, row())])], [], None)
    tracking.run([make_table(folder, [write_metrics(folder, row(psnr=None))])], [], None)
    assert "psnr" not in active(store)["digits/quest-w4a4-seed0"].data.metrics
    assert "quest-w4a4/psnr" not in active(store)["digits/table"].data.metrics


def test_a_changed_figure_is_replaced(store: MlflowClient, folder: Path):
    table = make_table(folder)
    tracking.run([table], [make_figure(folder), make_figure(folder, name="old")], None)
    tracking.run([table], [make_figure(folder, content=b"new")], None)
    run = active(store)["digits/table"]
    (item,) = store.list_artifacts(run.info.run_id, "figures")
    assert Path(store.download_artifacts(run.info.run_id, item.path, str(folder))).read_bytes() == b"new"


def test_a_run_that_was_cut_off_is_finished(store: MlflowClient, folder: Path, monkeypatch: pytest.MonkeyPatch):
    table = make_table(folder)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tracking, "_write_files", killed)
        with pytest.raises(KeyboardInterrupt):
            tracking.run([table], [], None)
    tracking.run([table], [], None)
    runs = active(store)
    assert len(runs) == len(CELLS) + 1
    assert all(run.info.status == "FINISHED" and "quest.fingerprint" in run.data.tags for run in runs.values())


def test_duplicates_from_elsewhere_become_one(store: MlflowClient, folder: Path):
    table = make_table(folder)
    tracking.run([table], [], None)
    run = active(store)["digits/table"]
    store.create_run(run.info.experiment_id, tags={"quest.key": "digits/table"})
    tracking.run([table], [], None)
    assert set(active(store)) >= {"digits/table"}  # `active` fails on two


def test_several_datasets_get_their_own_figures(store: MlflowClient, folder: Path):
    both = [make_table(folder), make_table(folder, dataset="shapes")]
    tracking.run(both, [make_figure(folder), make_figure(folder, "shapes", "grid")], None)
    runs = active(store)
    for dataset, name in (("digits", "samples"), ("shapes", "grid")):
        items = store.list_artifacts(runs[f"{dataset}/table"].info.run_id, "figures")
        assert [item.path for item in items] == [f"figures/{name}.png"]
    with pytest.raises(ValueError, match=r"stray.png: of 'bedrooms', but the tables are of digits, shapes"):
        tracking.run(both, [make_figure(folder, "bedrooms", "stray")], None)


def test_the_record_is_the_same_for_another_store(
    store: MlflowClient, folder: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
):
    table, figure = make_table(folder), make_figure(folder)
    tracking.run([table], [figure], folder / "record.json")
    first = (folder / "record.json").read_bytes()
    shutil.copy(empty_store, folder / "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    tracking.run([table], [figure], folder / "record.json")
    assert (folder / "record.json").read_bytes() == first
    content = load_json(folder / "record.json", "tracking").content
    assert set(content["runs"]) == set(active(store))


def test_two_processes_on_a_new_store_log_each_row_once(folder: Path):
    make_table(folder)
    code = (
        "from pathlib import Path; from quest.report import tracking;"
        "tracking.run([Path('results/tables/digits.json')], [], Path('record.json'))"
    )
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    processes = [subprocess.Popen([sys.executable, "-c", code], cwd=folder, env=environment) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    client = client_of(folder)
    assert len(active(client)) == len(CELLS) + 1
    (experiment,) = client.search_experiments(filter_string="name = 'quest'", view_type=ViewType.ALL)
    assert len(client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL)) == len(CELLS) + 1


def test_a_store_that_was_not_finished_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlflow.store.db.utils._upgrade_db", killed)
    with pytest.raises(KeyboardInterrupt):
        tracking._create_database(folder / "mlflow.db")
    assert list(folder.iterdir()) == []


FULL = """
import resource, sys
from quest import cli
size = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))  # no file grows any further, as on a full disk
cli.main(["track", sys.argv[2], "--output", "tracking.json"])
"""


@pytest.mark.parametrize("more", [-100_000, 4096], ids=["new", "there"])
def test_a_disk_that_fills_up_is_one_sentence(folder: Path, empty_store: Path, more: int):
    if more > 0:
        shutil.copy(empty_store, folder / "mlflow.db")
    size = empty_store.stat().st_size + more
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(size), str(make_table(folder))], capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 1
    said = rf"^Error: sqlite:///{folder}/mlflow.db: MLflow's store could not be written \(.*\); mend that and run again"
    assert re.search(said, done.stderr, re.MULTILINE), done.stderr
    assert not re.search("Traceback|sqlalche|OperationalError|IntegrityError", done.stderr), done.stderr
    assert not (folder / "tracking.json").exists()


def test_a_store_that_is_no_database_is_one_sentence(folder: Path):
    (folder / "mlflow.db").write_text("not a database")
    with pytest.raises(ArtifactError, match=r"mlflow.db: .* \(file is not a database\); .* delete the store, which is"):
        tracking.run([make_table(folder)], [], None)


def test_a_half_written_table_is_not_read(store: MlflowClient, folder: Path, executed: list[list[str]]):
    file = make_table(folder)
    (file.parent / ".digits.abcdefgh.partial.json").write_text("half")
    tracking.ui(free_port())
    assert len(executed) == 1


def test_the_store_can_be_named(folder: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "elsewhere").mkdir()
    shutil.copy(empty_store, folder / "elsewhere" / "runs.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/elsewhere/runs.db")
    tracking.run([make_table(folder)], [], None)
    assert not (folder / "mlflow.db").exists()
    with sqlite3.connect(folder / "elsewhere" / "runs.db") as database:
        assert database.execute("select count(*) from runs").fetchone() == (len(CELLS) + 1,)


def test_tags_and_parameters_beyond_one_request(store: MlflowClient, folder: Path):
    many = {"settings": {"methods": {"quest": {f"option_{i}": i for i in range(250)}}}}
    inputs = {"inputs": {f"samples.{i}": "s" * 64 for i in range(120)}}
    tracking.run([make_table(folder, [write_metrics(folder, row(), many | inputs)])], [], None)
    run = active(store)["digits/quest-w4a4-seed0"]
    assert run.data.params["methods.quest.option_249"] == "249"
    assert run.data.tags["quest.input.samples.119"] == "s" * 64


def test_telemetry_is_off_and_torch_stays_out(folder: Path, empty_store: Path):
    shutil.copy(empty_store, folder / "mlflow.db")
    make_table(folder)
    code = """
import socket, sys, time
looked_up = []
socket.getaddrinfo = lambda host, *_, **__: looked_up.append(host) or []
from pathlib import Path
from quest.report import tracking
tracking.run([Path("results/tables/digits.json")], [], None)
time.sleep(1)  # it would be looked up by a thread
assert not looked_up, looked_up
assert "torch" not in sys.modules
"""
    # Bare: MLflow sees many a variable of a test or CI environment as a reason not to report anyway.
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True)


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that a process would have become."""
    commands: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, arguments: commands.append(arguments))
    return commands


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_ui_fills_the_store_and_serves_on_loopback(
    store: MlflowClient, folder: Path, executed: list[list[str]], caplog: pytest.LogCaptureFixture
):
    make_table(folder)
    make_table(folder, dataset="shapes")
    make_figure(folder)
    make_figure(folder, "bedrooms")  # of a table that is not there
    port = free_port()
    with caplog.at_level("INFO", "quest.report.tracking"):
        tracking.ui(port)
    assert len(active(store)) == 2 * (len(CELLS) + 1)
    assert f"http://127.0.0.1:{port}" in caplog.text
    (command,) = executed
    assert command[1:4] == ["-m", "mlflow", "ui"]
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == str(port)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_ui_on_a_port_in_use_says_so_before_anything_is_written(folder: Path, executed: list[list[str]]):
    make_table(folder)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=f"--port: {port} is in use; name another"):
            tracking.ui(port)
    assert not executed
    assert not (folder / "mlflow.db").exists()


def test_ui_without_a_table_says_how_to_get_one(folder: Path, executed: list[list[str]]):
    with pytest.raises(ValueError, match=r"results/tables: no table yet; `snakemake` makes them, `dvc pull"):
        tracking.ui(free_port())
    assert not executed


def test_ui_of_a_server_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example:5000")
    with pytest.raises(ValueError, match=r"http://tracking.example:5000, a server with a page of its own"):
        tracking.ui(free_port())
