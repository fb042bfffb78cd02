"""MLflow as a view of the result tables: one run a row and one a table, found again by key, so a rerun adds none.

The store is not versioned (MLflow writes absolute artifact addresses into it); it is made again from
``results/tables`` at any time. Never imports torch; MLflow itself is imported when it is used.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import socket
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from quest.artifacts import ArtifactError, JsonArtifact, Manifest, atomic, listed, load_json, save_json
from quest.report import tables
from quest.report.tables import METRICS, Row, row_key

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "quest"
DEFAULT_STORE = "sqlite:///mlflow.db"
TABLES, FIGURES, PAPER = Path("results/tables"), Path("results/figures"), Path("results/paper")
KEY_TAG = "quest.key"
FINGERPRINT_TAG = "quest.fingerprint"
_INPUT_TAG = "quest.input."
_VERSION_TAG = "quest.version."
_LAYOUT = 2  # of what is logged; another number makes every run be written again
_SQLITE = "sqlite:///"
_BATCH = 100  # parameters, tags or metrics in one request (a limit of MLflow's)
_TAG_LENGTH = 5000  # that every store takes
_PROTOCOL = ("images", "reference_images", *tables.CHOICES)  # how a row was measured, not what came out
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Entry:
    """What one MLflow run holds. ``frames`` are logged as tables, ``files`` as figures."""

    key: str
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    frames: dict[str, list[Row]] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    def fingerprint(self) -> str:
        """sha256 of everything in it."""
        content = [_LAYOUT, self.key, self.params, self.metrics, self.tags, self.frames]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode())
        for file in self.files:
            digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()


def run(table_files: Sequence[Path], figures: Sequence[Path], output: Path | None, papers: Sequence[Path] = ()) -> None:
    """The `track` stage: every row of the tables as an MLflow run, and a run for each table with its figures.

    figures: pictures ``…/<name of the table>/<picture>.png``; with a single table all of them are its own. Grids of
    samples go to the rows of the seed that they show too. papers: artifacts of `quest.report.paper`, a run for each.
    output: an artifact of kind "tracking", {"experiment", "runs": {key: fingerprint}}.
    The store is ``MLFLOW_TRACKING_URI``, or ``mlflow.db`` in the current folder. Raises ValueError for a figure of
    no table.
    """
    artifacts = {file.stem: load_json(file, "table") for file in table_files}
    entries = [
        entry for name, own in _with_figures(list(artifacts), figures) for entry in _entries(name, artifacts[name], own)
    ]
    paper_tables = [load_json(file, "paper") for file in papers]
    entries += [_paper_entry(artifact) for artifact in paper_tables]
    entries = list({entry.key: entry for entry in reversed(entries)}.values())  # a cell of several tables: the first's
    fingerprints = {entry.key: entry.fingerprint() for entry in entries}
    with _store() as client:
        experiment = _experiment(client)
        found = _runs(client, experiment)
        written = 0
        for entry in entries:
            written += _write(client, experiment, found.get(entry.key, []), entry, fingerprints[entry.key])
    _log.info("%d of %d MLflow runs written to %s, the others were current", written, len(entries), _uri())
    if output is not None:
        inputs = {name: artifact.manifest.sha256 for name, artifact in artifacts.items()}
        inputs |= {_paper_key(artifact): artifact.manifest.sha256 for artifact in paper_tables}
        content = {"experiment": EXPERIMENT, "runs": fingerprints}
        save_json(output, content, Manifest(kind="tracking", inputs=inputs))


def ui(port: int) -> None:
    """Fill the store from ``results/tables`` and become `mlflow ui` on 127.0.0.1:``port``. Does not return.

    Raises ValueError when the port is taken, when there is no table yet, or when the store is a server.
    """
    uri = _uri()
    if uri.startswith(("http:", "https:")):
        raise ValueError(f"MLFLOW_TRACKING_URI is {uri}, a server with a page of its own; unset it for a local page")
    _require_free(port)
    files = listed(TABLES, "*.json")
    if not files:
        raise ValueError(f"{TABLES}: no table yet; `snakemake` makes them, `dvc pull {TABLES}` fetches shared ones")
    names = {file.stem for file in files}
    figures = [file for file in listed(FIGURES, "*/*.png") if file.parent.name in names]
    run(files, figures, None, listed(PAPER, "*/*.json"))
    _log.info("http://127.0.0.1:%d is ready in some seconds; Ctrl-C ends it", port)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", "127.0.0.1"]
    os.execv(sys.executable, [*command, "--port", str(port), "--workers", "1"])


def _entries(name: str, artifact: JsonArtifact, figures: Sequence[Path]) -> Iterator[_Entry]:
    content = artifact.content
    shown = min(row["seed"] for row in content["rows"])  # the seed of the sample grids
    grids = [file for file in figures if file.stem.startswith("samples")]
    for row in content["rows"]:
        source = content["sources"][row_key(row)]
        measured = _numbers(row)
        facts = {name: value for name, value in row.items() if name not in measured and value is not None}
        yield _Entry(
            key=row_key(row),
            params={name: _text(value) for name, value in (facts | _flat(source["settings"])).items()},
            metrics=measured,
            tags={_INPUT_TAG + name: digest for name, digest in source["inputs"].items()}
            | {_VERSION_TAG + name: version for name, version in source["versions"].items()},
            files=grids if row["seed"] == shown else [],
        )
    summary = content["summary"]
    note = tables.to_markdown(content["rows"], summary)
    yield _Entry(
        key=f"{name}/table",
        params={"dataset": content["dataset"]},
        metrics={
            _named(f"{row['method']}-{row['bits']}/{metric}"): float(row[metric])
            for row in summary
            for metric in METRICS
            if row.get(metric) is not None
        },
        tags=_input_tags(artifact) | ({"mlflow.note.content": note} if len(note) <= _TAG_LENGTH else {}),
        frames={"summary": summary, "rows": content["rows"]},
        files=list(figures),
    )


def _paper_entry(artifact: JsonArtifact) -> _Entry:
    content = artifact.content
    return _Entry(
        key=_paper_key(artifact),
        params={name: content[name] for name in ("dataset", "table", "title")},
        metrics={},
        tags=_input_tags(artifact),
        frames={"table": content["rows"]},
    )


def _paper_key(artifact: JsonArtifact) -> str:
    return f"{artifact.content['dataset']}/paper/{artifact.content['table']}"


def _input_tags(artifact: JsonArtifact) -> dict[str, str]:
    return {_named(_INPUT_TAG + name): digest for name, digest in artifact.manifest.inputs.items()}


def _named(name: str) -> str:
    """A name of a metric or tag as MLflow allows it: the + of a variant is none of its characters."""
    return name.replace("+", ":")


def _write(client: MlflowClient, experiment: str, found: Sequence[Run], entry: _Entry, fingerprint: str) -> bool:
    """Make ``entry`` the one active run of its key. Returns False when it is already, as the fingerprint tells."""
    from mlflow.entities import Metric, Param, RunTag

    current = found[0] if found else None
    for extra in found[1:]:
        client.delete_run(extra.info.run_id)
    if current is not None:
        if current.data.tags.get(FINGERPRINT_TAG) == fingerprint:
            return False
        # Parameters cannot be changed, nor metrics taken back: then another run takes its place.
        if current.data.params != entry.params or set(current.data.metrics) - set(entry.metrics):
            client.delete_run(current.info.run_id)
            current = None
    if current is None:
        current = client.create_run(experiment, run_name=entry.key, tags={KEY_TAG: entry.key})
    run_id = current.info.run_id

    for tag in current.data.tags:
        if tag == FINGERPRINT_TAG or (tag.startswith((_INPUT_TAG, _VERSION_TAG)) and tag not in entry.tags):
            client.delete_tag(run_id, tag)
    now = int(time.time() * 1000)
    for names in _batches(entry.metrics):
        client.log_batch(run_id, metrics=[Metric(name, entry.metrics[name], now, 0) for name in names])
    for names in _batches(entry.params):
        client.log_batch(run_id, params=[Param(name, entry.params[name]) for name in names])
    for names in _batches(entry.tags):
        client.log_batch(run_id, tags=[RunTag(name, entry.tags[name]) for name in names])
    _write_files(client, current, entry)
    client.set_terminated(run_id)
    # Last: a run without it was cut off, and is written again.
    client.set_tag(run_id, FINGERPRINT_TAG, fingerprint)
    return True


def _write_files(client: MlflowClient, run: Run, entry: _Entry) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository = get_artifact_repository(run.info.artifact_uri or "", tracking_uri=_uri())
    present = {item.path for item in repository.list_artifacts()}
    for folder in present & {"tables", "figures"}:
        repository.delete_artifacts(folder)  # log_table would append to what is there
    for name, rows in entry.frames.items():
        client.log_table(run.info.run_id, tables.frame(rows), f"tables/{name}.json")
    for file in entry.files:
        client.log_artifact(run.info.run_id, str(file), "figures")


@contextmanager
def _store() -> Iterator[MlflowClient]:
    """A client of the store, which is made if it is new. One process on this machine has it at a time.

    Several processes that make a fresh SQLite store at once break it for good, and two that look for a run at once
    would both add it. Raises ArtifactError when it cannot be written: no room, no server, no database.
    """
    # Read when MLflow is imported; without it the first use looks a host name up.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they print what they also raise
    uri = _uri()
    try:
        with FileLock(_lock_file(uri)):
            if uri.startswith(_SQLITE):
                _create_database(Path(uri.removeprefix(_SQLITE)))
            yield MlflowClient(tracking_uri=uri)
    except (OSError, MlflowException, SQLAlchemyError) as error:
        raise ArtifactError(
            f"{uri}: MLflow's store could not be written ({_reason(error)}); mend that and run again, "
            f"or delete the store, which is made again from {TABLES}"
        ) from error


def _reason(error: BaseException) -> str:
    """What the system or the database said, below what was made of it."""
    below = error.__cause__ or error.__context__
    if below is not None:
        return _reason(below)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).partition("\n")[0]


def _create_database(path: Path) -> None:
    """A fresh SQLite store, whole or not at all: a process that is killed between migrations leaves nothing."""
    if path.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    _log.info("making the MLflow store %s", path)
    with atomic(path) as partial:
        store = SqlAlchemyStore(f"{_SQLITE}{partial}", "./mlruns")
        store._dispose_engine()


def _experiment(client: MlflowClient) -> str:
    """The id of the experiment, made or restored where needed."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return client.create_experiment(EXPERIMENT)
    if experiment.lifecycle_stage != "active":
        client.restore_experiment(experiment.experiment_id)
    return experiment.experiment_id


def _runs(client: MlflowClient, experiment: str) -> dict[str, list[Run]]:
    """The active runs by key, newest first."""
    found: dict[str, list[Run]] = {}
    token = None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        for item in page:
            if KEY_TAG in item.data.tags:
                found.setdefault(item.data.tags[KEY_TAG], []).append(item)
        token = page.token
        if not token:
            return found


def _with_figures(names: Sequence[str], figures: Sequence[Path]) -> Iterator[tuple[str, list[Path]]]:
    """Each table's name with its pictures."""
    for file in figures:
        if len(names) > 1 and file.parent.name not in names:
            raise ValueError(f"{file}: of {file.parent.name!r}, but the tables are of {', '.join(names)}")
    for name in names:
        yield name, [file for file in figures if len(names) == 1 or file.parent.name == name]


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            why = "in use" if error.errno == errno.EADDRINUSE else f"not to be had ({error.strerror})"
            raise ValueError(f"--port: {port} is {why}; name another, like --port {port % 65535 + 1}") from None


def _uri() -> str:
    """The address of the store, absolute: MLflow keeps stores by address for as long as a process lives."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE
    return f"{_SQLITE}{Path(uri.removeprefix(_SQLITE)).resolve()}" if uri.startswith(_SQLITE) else uri


def _lock_file(uri: str) -> Path:
    """Beside a SQLite store; for others in the user's temporary folder."""
    if uri.startswith(_SQLITE):
        database = Path(uri.removeprefix(_SQLITE))
        database.parent.mkdir(parents=True, exist_ok=True)
        return database.with_name(database.name + ".lock")
    name = hashlib.sha256(uri.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"quest-mlflow-{os.getuid()}-{name}.lock"


def _numbers(row: Row) -> dict[str, float]:
    """What was measured or counted: every number that does not name the row or its protocol."""
    skipped = {*tables.KEYS, *_PROTOCOL}
    return {name: float(value) for name, value in row.items() if name not in skipped and isinstance(value, int | float)}


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _batches(names: Collection[str]) -> Iterator[list[str]]:
    ordered = sorted(names)
    for start in range(0, len(ordered), _BATCH):
        yield ordered[start : start + _BATCH]
