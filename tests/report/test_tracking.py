"""MLflow against a real SQLite store: one run a key, whatever is logged again, by whom, and after what."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from result_files import row, write_all, write_metrics

from quest import paths
from quest.artifacts import ArtifactError, Manifest, load_json, save_json, save_tensors
from quest.config.reading import validate
from quest.report import paper, tracking
from quest.report.published import Published
from quest.report.tracking import cells, page, pictures
from quest.report.tracking import store as stores
from quest.stages import table as table_stage

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # MLflow reads it when it is imported

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

CELLS = (("quest", "w4a4"), ("quest", "w8a8"), ("fp", "w32a32"))  # each takes MLflow a moment


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new store, whose migrations take seconds, to be copied."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    stores.create_database(path)
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
    metrics = metrics or write_all(folder / "metrics" / dataset, dataset=dataset, cells=CELLS)
    table_stage.run(dataset, metrics, output)
    return output


def make_figure(folder: Path, dataset: str = "digits", name: str = "samples", content: bytes = b"png") -> Path:
    file = folder / "results" / "figures" / dataset / f"{name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def active(client: MlflowClient, name: str = tracking.EXPERIMENT) -> dict[str, Run]:
    """The active runs by key; fails when a key has two."""
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    found = {run.data.tags["quest.key"]: run for run in runs}
    assert len(found) == len(runs)
    return found


def seeds_of(client: MlflowClient) -> dict[str, Run]:
    return {key: run for key, run in active(client).items() if "@" not in key}


def cells_of(client: MlflowClient) -> dict[str, Run]:
    """The runs of cells, by what comes before their protocol."""
    return {key.partition("@")[0]: run for key, run in active(client).items() if "@" in key}


def models_of(run: Run) -> list[Any]:
    return run.outputs.model_outputs if run.outputs else []


def text_of(client: MlflowClient, run: Run, path: str, folder: Path) -> str:
    return Path(client.download_artifacts(run.info.run_id, path, str(folder))).read_text()


def paths_in(client: MlflowClient, run: Run, path: str | None = None) -> set[str]:
    return {item.path for item in client.list_artifacts(run.info.run_id, path)}


def test_a_run_for_each_cell_with_its_seeds_under_it(store: MlflowClient, folder: Path):
    tracking.run([make_table(folder, write_all(folder / "metrics", seeds=2, cells=CELLS))], [], None)
    whole, seeds = cells_of(store), seeds_of(store)
    assert set(whole) == {f"digits/{method}-{bits}" for method, bits in CELLS}
    assert set(seeds) == {f"digits/{method}-{bits}-seed{seed}" for method, bits in CELLS for seed in (0, 1)}
    quest = whole["digits/quest-w4a4"]
    assert (quest.info.status, quest.info.run_name) == ("FINISHED", "QuEST W4A4")
    for seed in (0, 1):
        run = seeds[f"digits/quest-w4a4-seed{seed}"]
        assert run.data.tags["mlflow.parentRunId"] == quest.info.run_id
        assert run.data.metrics["fid"] == 40 + seed
    assert quest.data.metrics["fid"] == 40.5
    assert set(quest.data.metrics) == {*(set(cells.MEASURED) & set(row())), "weight_mib", "gbops"}
    assert quest.data.params.items() >= {"method": "quest", "bits": "w4a4", "seeds": "0, 1", "layers": "40"}.items()
    note = quest.data.tags["mlflow.note.content"]
    assert note.startswith("QuEST with 4-bit weights and 4-bit activations on digits: FID 40.50\u00a0±\u00a00.71")
    assert "(full precision 2.50" in note
    assert note.endswith("of 2 seeds.")


def test_every_cell_has_the_same_parameters(store: MlflowClient, folder: Path):
    metrics = [row("quest", optimizer_steps=240), row("fp", "w32a32")]
    tracking.run([make_table(folder, [write_metrics(folder, each) for each in metrics])], [], None)
    (names,) = {frozenset(run.data.params) for run in active(store).values()}
    assert {"method", "bits", "activation_granularity", "protocol"} <= names
    assert cells_of(store)["digits/quest-w4a4"].data.params["optimizer_steps"] == "240"
    assert cells_of(store)["digits/fp-w32a32"].data.params["optimizer_steps"] == "–"
    assert "psnr" not in cells_of(store)["digits/fp-w32a32"].data.metrics, "its distance to itself"


def test_what_a_cell_was_made_from_are_files_and_its_dataset_an_input(store: MlflowClient, folder: Path):
    tracking.run([make_table(folder)], [], None)
    run = cells_of(store)["digits/quest-w4a4"]
    assert paths_in(store, run) == {"results.json", "settings.json", "inputs.json", "versions.json"}
    assert json.loads(text_of(store, run, "inputs.json", folder))["digits/quest-w4a4-seed0"]["model"] == "m" * 64
    assert json.loads(text_of(store, run, "settings.json", folder))["methods"] == {"quest": {"sets": 20}}
    assert json.loads(text_of(store, run, "results.json", folder))["mean"]["fid"] == 40
    assert not any("input" in tag or "version" in tag for tag in run.data.tags)
    assert run.inputs is not None
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("digits", "r" * 12)


def test_a_suite_is_one_run_whose_folders_are_datasets(store: MlflowClient, folder: Path):
    figures = [make_figure(folder), make_figure(folder, name="comparison")]
    tracking.run([make_table(folder)], figures, None)
    tracking.run([make_table(folder, dataset="shapes")], [], None)
    runs = active(store, tracking.TABLES_EXPERIMENT)
    assert set(runs) == {"suite/default"}
    run = runs["suite/default"]
    assert not run.data.metrics, "tables spoil no chart"
    assert paths_in(store, run) == {"digits", "shapes"}
    texts = {f"digits/{name}" for name in ("table.html", "table.md", "rows.csv")}
    assert paths_in(store, run, "digits") == texts | {"digits/samples.png", "digits/comparison.png"}
    assert '<td class="words">QuEST</td>' in text_of(store, run, "digits/table.html", folder)


def test_a_cell_is_the_mean_over_all_seeds_that_are_here(store: MlflowClient, folder: Path):
    every = write_all(folder / "results" / "metrics" / "digits", seeds=3, cells=CELLS)
    tracking.run([make_table(folder, [file for file in every if "seed0" in file.name])], [], folder / "record.json")
    assert cells_of(store)["digits/quest-w4a4"].data.params["seeds"] == "0, 1, 2"
    record = load_json(folder / "record.json", "tracking").content["runs"]
    assert set(record) == {f"digits/{m}-{b}-seed0" for m, b in CELLS} | {"suite/default/digits"}, "what was given alone"


def test_the_pictures_and_the_checkpoint_of_a_cell_are_with_it(store: MlflowClient, folder: Path):
    for method, bits in CELLS:
        name = f"digits/{method}-{bits}-seed0.safetensors"
        images = torch.full((64, 1, 4, 4), 100, dtype=torch.uint8)
        save_tensors(folder / "results/previews" / name, {"images": images}, Manifest(kind="preview"))
    checkpoint = folder / "results/finetune/digits/quest-w4a4-seed0.safetensors"
    save_tensors(checkpoint, {"a": torch.zeros(1)}, Manifest(kind="checkpoint"))
    tracking.run([make_table(folder)], [], None)
    run = cells_of(store)["digits/quest-w4a4"]
    assert any(path.endswith(".png") for path in paths_in(store, run, "images"))
    (output,) = models_of(run)
    model = store.get_logged_model(output.model_id)
    assert (model.name, model.status) == ("quest-w4a4-seed0", "READY")
    assert model.tags["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert {metric.key: metric.value for metric in model.metrics or []}["fid"] == 40
    tracking.run([make_table(folder)], [], None)
    assert cells_of(store)["digits/quest-w4a4"].info.run_id == run.info.run_id
    assert not models_of(cells_of(store)["digits/fp-w32a32"])


def test_two_grids_side_by_side(tmp_path: Path):
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for value, file in enumerate(files):
        images = torch.full((64, 1, 4, 4), value, dtype=torch.uint8)
        save_tensors(file, {"images": images}, Manifest(kind="preview"))
    shown = pictures.side_by_side(files)
    height, width, channels = shown.shape
    assert (height, channels, width) == (8 * 49, 3, 2 * 8 * 49 + 16)
    assert (shown[:, : 8 * 49] != 1).all()
    assert (shown[:, -8 * 49 :] != 0).all()
    assert (shown[:, 8 * 49 : 8 * 49 + 16] == 255).all()


def test_variants_say_what_they_change_and_tables_of_the_papers_are_there(store: MlflowClient, folder: Path):
    changed = {"settings": {"methods": {"quest": {"sets": 1}}}}
    metrics = [write_metrics(folder, row()), write_metrics(folder, row("quest+1-set"), changed)]
    rows = [{"method": "quest+1-set", "bits": "w4a4"}]
    table = {"title": "A table", "source": "QuEST (ICCV 2025), table 3", "columns": ["fid"], "rows": rows}
    known = validate(Published, {"datasets": {}, "tables": {"small": table}}, "tests")
    measured = {file: load_json(file, "metrics") for file in metrics}
    content = paper.build("small", "digits", known, measured, "", folder)
    save_json(folder / "small.json", content, Manifest(kind="paper"))
    output = folder / "tracking.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking.published, "load", lambda: known)
        tracking.run([make_table(folder, metrics)], [], output, [folder / "small.json"])
    assert cells_of(store)["digits/quest+1-set-w4a4"].data.params["changed"] == "methods.quest.sets=1"
    assert cells_of(store)["digits/quest-w4a4"].data.params["changed"] == "–"
    run = active(store, tracking.TABLES_EXPERIMENT)["paper/digits"]
    assert "<h1>Table 3: A table (digits)</h1>" in text_of(store, run, "small/table.html", folder)
    assert set(load_json(output, "tracking").manifest.inputs) == {"digits", "paper/digits/small"}


def test_cells_of_other_protocols_are_shown_apart(store: MlflowClient, folder: Path):
    metrics = folder / "results" / "metrics" / "digits"
    write_all(metrics)
    write_metrics(metrics, row(seed=1, images=50))
    tracking.fill()
    keys = [key for key in active(store) if key.startswith("digits/quest-w4a4@")]
    assert len(keys) == 2
    views = [view.title for view in cells.views_of(cells.grouped([*tracking._measured(metrics.parent)]))]
    assert views[:3] == ["digits", "digits W8A8", "digits W4A4"]
    assert re.fullmatch(r"digits, protocol [0-9a-f]{6}", views[3])


def test_the_protocol_whose_images_are_here_comes_first(folder: Path):
    metrics = folder / "results" / "metrics" / "digits"
    write_all(metrics)
    few = row(seed=1, images=50)
    write_metrics(metrics, few)
    groups = cells.grouped([*tracking._measured(metrics.parent)])
    most = next(iter(cells.views_of(groups).values()))
    assert {seed["images"] for cell in most for seed in cell.rows} == {row()["images"]}
    preview = Path(paths.fill(paths.PREVIEW, **few))
    preview.parent.mkdir(parents=True)
    preview.touch()
    first = next(iter(cells.views_of(groups).values()))
    assert {seed["images"] for cell in first for seed in cell.rows} == {50}


def test_a_rerun_changes_nothing_and_is_quick(store: MlflowClient, folder: Path, monkeypatch: pytest.MonkeyPatch):
    table, figure = make_table(folder), make_figure(folder)
    tracking.run([table], [figure], None)
    before = {key: run.to_dictionary() for key, run in active(store).items()}

    def written(*_: Any, **__: Any) -> None:
        raise AssertionError("a run was written again")

    for name in ("create_run", "log_batch", "log_image", "delete_run", "set_tag"):
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
    assert cells_of(store)["digits/quest-w4a4"].data.metrics["fid"] == 12.5
    tables_run = active(store, tracking.TABLES_EXPERIMENT)["suite/default"]
    assert "12.5" in text_of(store, tables_run, "digits/rows.csv", folder)


def test_changed_facts_replace_the_runs_and_seeds_stay_under_their_cell(store: MlflowClient, folder: Path):
    tracking.run([make_table(folder)], [], None)
    before = active(store)
    changed = write_metrics(folder / "metrics" / "digits", row(layers=41))
    others = [file for file in (folder / "metrics" / "digits").glob("*.json") if file != changed]
    tracking.run([make_table(folder, [changed, *others])], [], None)
    after, key = active(store), "digits/quest-w4a4-seed0"
    assert after[key].data.params["layers"] == "41"
    assert after[key].info.run_id != before[key].info.run_id
    parent = cells_of(store)["digits/quest-w4a4"]
    assert after[key].data.tags["mlflow.parentRunId"] == parent.info.run_id
    deleted = store.search_runs([after[key].info.experiment_id], run_view_type=ViewType.DELETED_ONLY)
    assert len(deleted) == 2


def test_a_metric_that_is_gone_does_not_linger(store: MlflowClient, folder: Path):
    tracking.run([make_table(folder, [write_metrics(folder, row())])], [], None)
    tracking.run([make_table(folder, [write_metrics(folder, row(psnr=None))])], [], None)
    assert "psnr" not in active(store)["digits/quest-w4a4-seed0"].data.metrics
    assert "psnr" not in cells_of(store)["digits/quest-w4a4"].data.metrics


def test_a_changed_figure_is_replaced(store: MlflowClient, folder: Path):
    table = make_table(folder)
    tracking.run([table], [make_figure(folder), make_figure(folder, name="old")], None)
    tracking.run([table], [make_figure(folder, content=b"new")], None)
    run = active(store, tracking.TABLES_EXPERIMENT)["suite/default"]
    assert {path for path in paths_in(store, run, "digits") if path.endswith(".png")} == {"digits/samples.png"}
    assert text_of(store, run, "digits/samples.png", folder) == "new"


def test_a_run_that_was_cut_off_is_finished(store: MlflowClient, folder: Path, monkeypatch: pytest.MonkeyPatch):
    table = make_table(folder)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stores.Store, "_write_artifacts", killed)
        with pytest.raises(KeyboardInterrupt):
            tracking.run([table], [], None)
    tracking.run([table], [], None)
    runs = active(store)
    assert len(runs) == 2 * len(CELLS)
    assert all(run.info.status == "FINISHED" and "quest.fingerprint" in run.data.tags for run in runs.values())


def test_duplicates_from_elsewhere_become_one(store: MlflowClient, folder: Path):
    table = make_table(folder)
    tracking.run([table], [], None)
    run = active(store)["digits/quest-w4a4-seed0"]
    store.create_run(run.info.experiment_id, tags={"quest.key": "digits/quest-w4a4-seed0"})
    tracking.run([table], [], None)
    assert len(active(store)) == 2 * len(CELLS)  # `active` fails on two


def test_several_datasets_get_their_own_figures(store: MlflowClient, folder: Path):
    both = [make_table(folder), make_table(folder, dataset="shapes")]
    tracking.run(both, [make_figure(folder), make_figure(folder, "shapes", "grid")], None)
    run = active(store, tracking.TABLES_EXPERIMENT)["suite/default"]
    for dataset, name in (("digits", "samples"), ("shapes", "grid")):
        pictures = {path for path in paths_in(store, run, dataset) if path.endswith(".png")}
        assert pictures == {f"{dataset}/{name}.png"}
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
    assert set(content["runs"]) == {*seeds_of(store), "suite/default/digits"}


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
    assert len(active(client)) == 2 * len(CELLS)
    (experiment,) = client.search_experiments(filter_string="name = 'quest'", view_type=ViewType.ALL)
    assert len(client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL)) == 2 * len(CELLS)


def test_a_store_that_was_not_finished_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlflow.store.db.utils._upgrade_db", killed)
    with pytest.raises(KeyboardInterrupt):
        stores.create_database(folder / "mlflow.db")
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


def test_the_store_can_be_named(folder: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "elsewhere").mkdir()
    shutil.copy(empty_store, folder / "elsewhere" / "runs.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/elsewhere/runs.db")
    tracking.run([make_table(folder)], [], None)
    assert not (folder / "mlflow.db").exists()
    with sqlite3.connect(folder / "elsewhere" / "runs.db") as database:
        assert database.execute("select count(*) from runs").fetchone() == (2 * len(CELLS) + 1,)


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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_everything_that_was_pulled_is_filled_in_and_a_view_a_width(store: MlflowClient, folder: Path):
    """Also what no table has; the workflow's own records are no results."""
    write_all(folder / "results" / "metrics" / "digits", seeds=2, cells=CELLS)
    (folder / "results" / "metrics" / "records.json").write_text("{}\n{}\n")
    make_table(folder, dataset="shapes")
    (folder / "results" / "tables" / "records.json").write_text("{}\n{}\n")
    (folder / "results" / "tables" / ".digits.abcdefgh.partial.json").write_text("half")
    address = tracking.fill()
    assert len(seeds_of(store)) == 3 * len(CELLS)
    experiment = store.get_experiment_by_name(tracking.EXPERIMENT)
    assert experiment is not None
    assert address == (
        f"#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning&viewStateShareKey=digits"
    )
    saved = {tag.removeprefix("mlflow.sharedViewState."): value for tag, value in experiment.tags.items()}
    state = json.loads(saved["digits-w4a4"])
    shown = store.search_runs([experiment.experiment_id], state["searchFilter"])
    assert {run.data.params["bits"] for run in shown} == {"w4a4", "w32a32"}, "full precision stands in every view"
    assert {run.data.params["dataset"] for run in shown} == {"digits"}
    assert {"metrics.`fid`", "metrics.`psnr`", "params.`method`"} <= set(state["selectedColumns"])
    assert "viewStateShareKey=shapes-w8a8" in experiment.tags["mlflow.note.content"]


def test_ui_on_a_port_in_use_says_so_before_anything_is_written(folder: Path):
    make_table(folder)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=f"--port: {port} is in use; name another"):
            page.serve(port, browser=False)
    assert not (folder / "mlflow.db").exists()


def test_ui_without_results_says_how_to_get_some(folder: Path):
    with pytest.raises(ValueError, match=r"results/metrics and results/tables: no results yet; `dvc pull` fetches"):
        page.serve(free_port(), browser=False)


def test_ui_of_a_server_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example:5000")
    with pytest.raises(ValueError, match=r"http://tracking.example:5000, a server with a page of its own"):
        page.serve(free_port(), browser=False)


def test_a_terminal_without_a_screen_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert not page._has_screen()
    monkeypatch.setenv("DISPLAY", ":0")
    assert page._has_screen()


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; `apt-get install chromium` brings it")
def test_the_printed_address_shows_numbers_of_the_table(store: MlflowClient, folder: Path):
    """In a fresh browser, from results alone."""
    write_all(folder / "results" / "metrics" / "digits", seeds=2, cells=CELLS)
    command = [sys.executable, "-c", "from quest.cli import main; main()", "ui", "--no-browser"]
    server = subprocess.Popen([*command, "--port", str(free_port())], stdout=subprocess.PIPE, text=True, cwd=folder)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        shown = ""
        for _ in range(3):  # a machine with other work may not have drawn the table in time
            shown = _drawn(address, folder)
            if "40.5" in shown:
                break
    finally:
        server.terminate()
        server.wait()
    for text in ("QuEST W4A4", "40.5", "Full precision", "2.5"):  # means over two seeds
        assert f">{text}<" in shown, text
    assert not re.search("No data available|Something went wrong", shown)


def _drawn(address: str, folder: Path) -> str:
    """The page as HTML after its scripts ran."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/browser"]
    options += ["--window-size=1600,1200", "--virtual-time-budget=30000", "--dump-dom"]
    done = subprocess.run([str(CHROMIUM), *options, address], capture_output=True, text=True, timeout=120)
    return done.stdout
