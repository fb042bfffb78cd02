"""MLflow's store: made whole or not at all, written by one process at a time, every run found again by its key.

The store is not versioned (MLflow writes absolute artifact addresses into it); it is made again from ``results/`` at
any time. MLflow itself is imported when it is used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from quest.artifacts import ArtifactError, atomic

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DEFAULT_STORE = "sqlite:///mlflow.db"
KEY_TAG = "quest.key"
FINGERPRINT_TAG = "quest.fingerprint"
PICTURES = "full precision beside this cell"  # the key of a logged image
MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}  # what MLflow's page shows of an experiment
_PARENT_TAG = "mlflow.parentRunId"
_COMMIT_TAG = "mlflow.source.git.commit"
_LAYOUT = 3  # of what is logged; another number makes every run be written again
_SQLITE = "sqlite:///"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """What one MLflow run holds.

    marks: tags that say where it is shown; they depend on what else is here, so they are no part of the fingerprint.
    parent: the key of the run that it is nested under. dataset: name and digest of what it was measured against.
    artifacts: content, or the file with it, by path. pictures: two previews, drawn beside each other.
    model: a checkpoint file, registered as the run's model with its metrics.
    """

    key: str
    name: str
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    marks: Mapping[str, str] = field(default_factory=dict)
    parent: str | None = None
    dataset: tuple[str, str] | None = None
    artifacts: Mapping[str, str | Path] = field(default_factory=dict)
    pictures: tuple[Path, ...] = ()
    model: Path | None = None

    def fingerprint(self) -> str:
        """sha256 of everything in it."""
        content = [_LAYOUT, self.key, self.name, self.params, self.metrics, self.tags, self.dataset]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode())
        files = [file for file in (*self.pictures, self.model) if file is not None]
        for path, content in (*self.artifacts.items(), *((file.name, file) for file in files)):
            data = content.read_bytes() if isinstance(content, Path) else content.encode()
            digest.update(path.encode() + hashlib.sha256(data).digest())
        return digest.hexdigest()


class Store:
    """The runs of a store by key. Made by `opened`."""

    def __init__(self, client: MlflowClient, commit: str | None):
        self.client, self._commit = client, commit
        self._found: dict[str, dict[str, list[Run]]] = {}

    def experiment(self, name: str) -> str:
        """The id of an experiment, made or restored where needed."""
        found = self.client.get_experiment_by_name(name)
        if found is None:
            return self.client.create_experiment(name, tags=MODEL_TRAINING)
        if found.lifecycle_stage != "active":
            self.client.restore_experiment(found.experiment_id)
        return found.experiment_id

    def write(self, experiment: str, entry: Entry, fingerprint: str) -> bool:
        """Make ``entry`` the one active run of its key. Returns False when it is already, as the fingerprint tells."""
        current = self._one(experiment, entry.key)
        parent = self._one(experiment, entry.parent) if entry.parent else None
        marks = {**entry.marks, **({_PARENT_TAG: parent.info.run_id} if parent else {})}
        if current is not None and current.data.tags.get(FINGERPRINT_TAG) == fingerprint:
            for tag, value in marks.items():
                if current.data.tags.get(tag) != value:
                    self.client.set_tag(current.info.run_id, tag, value)
            return False
        if current is not None and not _can_become(current, entry):
            self.client.delete_run(current.info.run_id)
            current = None
        tags = {KEY_TAG: entry.key, **entry.tags, **marks, **self._source()}
        if current is None:
            current = self.client.create_run(experiment, run_name=entry.name, tags=tags)
        else:
            for tag in current.data.tags:
                if tag == FINGERPRINT_TAG or (tag.startswith("quest.") and tag not in tags):
                    self.client.delete_tag(current.info.run_id, tag)
            for tag, value in tags.items():
                self.client.set_tag(current.info.run_id, tag, value)
        self._runs(experiment)[entry.key] = [current]
        self._fill(current, entry)
        # Last: a run without it was cut off, and is written again.
        self.client.set_tag(current.info.run_id, FINGERPRINT_TAG, fingerprint)
        return True

    def write_part(
        self, experiment: str, key: str, name: str, part: str, artifacts: Mapping[str, str | Path], note: str
    ) -> tuple[str, bool]:
        """Make ``artifacts`` the folder ``part`` of the run ``key``, which several jobs fill, each a part.

        Returns the fingerprint of the part, and whether it had to be written.
        """
        fingerprint = Entry(f"{key}/{part}", name, {}, {}, {}, artifacts=artifacts).fingerprint()
        tag = f"{FINGERPRINT_TAG}.{part}"
        run = self._one(experiment, key)
        if run is not None and run.data.tags.get(tag) == fingerprint:
            return fingerprint, False
        if run is None:
            tags = {KEY_TAG: key, "mlflow.note.content": note, **self._source()}
            run = self.client.create_run(experiment, run_name=name, tags=tags)
        self._write_artifacts(run, {f"{part}/{path}": content for path, content in artifacts.items()}, replaced=part)
        self.client.set_terminated(run.info.run_id)
        self.client.set_tag(run.info.run_id, tag, fingerprint)
        self._runs(experiment)[key] = [run]
        return fingerprint, True

    def _fill(self, run: Run, entry: Entry) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

        run_id, now = run.info.run_id, int(time.time() * 1000)
        metrics = [Metric(name, value, now, 0) for name, value in sorted(entry.metrics.items())]
        self.client.log_batch(run_id, metrics, [Param(*item) for item in sorted(entry.params.items())])
        if entry.dataset is not None:
            name, digest = entry.dataset
            dataset = Dataset(name, digest[:12], "local", json.dumps({"sha256": digest}))
            self.client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "evaluation")])])
        if entry.artifacts or run.data.tags.get(FINGERPRINT_TAG):
            self._write_artifacts(run, entry.artifacts)
        if entry.pictures:
            from quest.report.tracking.pictures import side_by_side

            self.client.log_image(run_id, side_by_side(entry.pictures), key=PICTURES, step=0)
        if entry.model is not None:
            self._register(run, entry, entry.model)
        self.client.set_terminated(run_id)

    def _register(self, run: Run, entry: Entry, checkpoint: Path) -> None:
        """The checkpoint as a logged model: where it lies and its sha256, not a copy of it, and the run's metrics."""
        from mlflow.entities import LoggedModelOutput, Metric

        tags = {"file": str(checkpoint), "sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest()}
        model = self.client.create_logged_model(
            run.info.experiment_id,
            checkpoint.stem.replace("+", "-"),
            run.info.run_id,
            tags,
            model_type="quest checkpoint",
        )
        self.client.finalize_logged_model(model.model_id, "READY")
        self.client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, 0)])
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, 0, model_id=model.model_id) for name, value in entry.metrics.items()]
        self.client.log_batch(run.info.run_id, metrics=metrics)

    def _write_artifacts(self, run: Run, artifacts: Mapping[str, str | Path], replaced: str | None = None) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        repository = get_artifact_repository(run.info.artifact_uri or "", tracking_uri=address())
        present = {item.path for item in repository.list_artifacts()}
        for path in present if replaced is None else present & {replaced}:
            repository.delete_artifacts(path)
        with tempfile.TemporaryDirectory(prefix="quest-mlflow-") as scratch:
            for path, content in artifacts.items():
                file = Path(scratch, path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content.read_bytes() if isinstance(content, Path) else content.encode())
            if artifacts:
                repository.log_artifacts(scratch)

    def _source(self) -> dict[str, str]:
        source = {"mlflow.source.name": "Snakefile", "mlflow.source.type": "PROJECT"}
        return {**source, _COMMIT_TAG: self._commit} if self._commit else source

    def _one(self, experiment: str, key: str) -> Run | None:
        """The run of a key; others of it, which another process may have made, are deleted."""
        found = self._runs(experiment).get(key, [])
        for extra in found[1:]:
            self.client.delete_run(extra.info.run_id)
        del found[1:]
        return found[0] if found else None

    def _runs(self, experiment: str) -> dict[str, list[Run]]:
        """The active runs by key, newest first."""
        if experiment not in self._found:
            found: dict[str, list[Run]] = {}
            token = None
            while True:
                page = self.client.search_runs([experiment], max_results=1000, page_token=token)
                for item in page:
                    if KEY_TAG in item.data.tags:
                        found.setdefault(item.data.tags[KEY_TAG], []).append(item)
                token = page.token
                if not token:
                    break
            self._found[experiment] = found
        return self._found[experiment]


@contextmanager
def opened(commit: str | None, again: str) -> Iterator[Store]:
    """The store, made if it is new. One process on this machine has it at a time.

    commit: that the results are of. again: what a deleted store is made again from, for the message.
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
    uri = address()
    try:
        with FileLock(_lock_file(uri)), _unhurried():
            if uri.startswith(_SQLITE):
                create_database(Path(uri.removeprefix(_SQLITE)))
            yield Store(MlflowClient(tracking_uri=uri), commit)
    except (OSError, MlflowException, SQLAlchemyError) as error:
        raise ArtifactError(
            f"{uri}: MLflow's store could not be written ({_reason(error)}); mend that and run again, "
            f"or delete the store, which is made again from {again}"
        ) from error


def address() -> str:
    """The address of the store, absolute: MLflow keeps stores by address for as long as a process lives."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE
    return f"{_SQLITE}{Path(uri.removeprefix(_SQLITE)).resolve()}" if uri.startswith(_SQLITE) else uri


def create_database(path: Path) -> None:
    """A fresh SQLite store, whole or not at all: a process that is killed between migrations leaves nothing."""
    if path.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    _log.info("making the MLflow store %s", path)
    with atomic(path) as partial:
        store = SqlAlchemyStore(f"{_SQLITE}{partial}", "./mlruns")
        store._dispose_engine()


@contextmanager
def _unhurried() -> Iterator[None]:
    """Within, SQLite leaves it to the system when its file reaches the disk: thousands of small writes, each waited
    for, take minutes. A process that is killed damages nothing; a machine that loses power may, and the store is made
    again."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def relax(connection: Any, _: Any) -> None:
        if type(connection).__module__ == "sqlite3":
            with suppress(sqlite3.Error):  # of a file that is no database it is said where the store is read
                connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", relax)
    try:
        yield
    finally:
        event.remove(Engine, "connect", relax)


def _can_become(run: Run, entry: Entry) -> bool:
    """Whether a run can be made the entry: parameters cannot be changed, nor metrics, models or pictures taken back."""
    outputs: Sequence[Any] = run.outputs.model_outputs if run.outputs else ()
    return (
        run.data.params == entry.params
        and not set(run.data.metrics) - set(entry.metrics)
        and run.info.run_name == entry.name
        and not outputs
    )


def _reason(error: BaseException) -> str:
    """What the system or the database said, below what was made of it."""
    below = error.__cause__ or error.__context__
    if below is not None:
        return _reason(below)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).partition("\n")[0]


def _lock_file(uri: str) -> Path:
    """Beside a SQLite store; for others in the user's temporary folder."""
    if uri.startswith(_SQLITE):
        database = Path(uri.removeprefix(_SQLITE))
        database.parent.mkdir(parents=True, exist_ok=True)
        return database.with_name(database.name + ".lock")
    name = hashlib.sha256(uri.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"quest-mlflow-{os.getuid()}-{name}.lock"
