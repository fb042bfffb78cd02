"""Snakemake's records of what results were made from, beside the results: a file a folder of results.

Snakemake keeps a record of each result in ``.snakemake/metadata``: settings, code, content of the inputs. Without it,
results that were fetched could not be told from results of something else. So what a run records is collected into
``results/<stage>/records.json`` (and ``data/models/records.json``), which DVC keeps and fetches with the results; when
a run is planned, records that came since are put back where Snakemake looks. A record comes with the sha256 of its
result and is put back only where that is what lies there, or nothing does: of a result that is not shared, too, the
record says that what was made from it is current. Beside a record stands the machine that its job ran on, where that is
known, so that times of different machines are told apart (`quest.report.times`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quest.artifacts import ArtifactError, write_bytes

METADATA = Path(".snakemake/metadata")
INCOMPLETE = Path(".snakemake/incomplete")  # marks of results that Snakemake makes again
SYNCED = Path(".snakemake/records.json")  # which collections are the same as Snakemake's own records
NAME = "records.json"
FOLDERS = ("results/*", "data/models")
_UNSHARED = "digits-quick"  # a trial run whose results are nothing to keep


def collect(root: Path, machine: str | None = None) -> None:
    """Write the collections: the records of results that are there, and of all that those were made from.

    machine: that the jobs ran on whose records came since the last call; None where that is not known.
    """
    records = dict(_recorded(root))
    before = {entry["file"]: entry for file in _collections(root) for entry in _readable(file)}
    kept: set[str] = set()
    waiting = [name for name in records if (root / name).exists() and _UNSHARED not in name]
    while waiting:
        name = waiting.pop()
        if name in records and name not in kept:
            kept.add(name)
            waiting += records[name].get("input") or []
    collections: dict[Path, dict[str, Any]] = {}
    for name in sorted(kept):
        collections.setdefault(Path(*Path(name).parts[:2]) / NAME, {})[name] = {
            "sha256": sha256(root / name),
            "record": records[name],
            **_where(records[name], before.get(name), machine),
        }
    synced = _read_json(root / SYNCED)
    for file, content in collections.items():
        data = "".join(
            f"{json.dumps({'file': name, **entry}, sort_keys=True)}\n" for name, entry in content.items()
        ).encode()
        if not (root / file).exists() or (root / file).read_bytes() != data:
            write_bytes(root / file, data)
        synced[str(file)] = hashlib.sha256(data).hexdigest()
    write_bytes(root / SYNCED, json.dumps(synced, indent=1, sort_keys=True).encode())


def _where(record: dict[str, Any], before: dict[str, Any] | None, machine: str | None) -> dict[str, str]:
    """The machine of a record: of a job that was collected before, what was said of it then, be it nothing."""
    times = [record.get(key) for key in ("starttime", "endtime")]
    if before is not None and times == [before["record"].get(key) for key in ("starttime", "endtime")]:
        machine = before.get("machine")
    return {} if machine is None else {"machine": machine}


def _readable(file: Path) -> list[dict[str, Any]]:
    """The entries of a collection that is about to be written anew; none of a damaged one."""
    try:
        return list(_entries(file))
    except ArtifactError:
        return []


def restore(root: Path) -> list[str]:
    """Put back records of collections that came since the last call, and mark the results beside them that are left
    without one, to be made again: Snakemake would take a result of which nothing is known for current.

    Returns the marked ones. Models are never marked, for they may be anybody's. Raises ArtifactError for a damaged
    collection.
    """
    synced = _read_json(root / SYNCED)
    found = {str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest() for file in _collections(root)}
    unknown = []
    if new := [name for name, digest in found.items() if synced.get(name) != digest]:
        for name in new:
            for entry in _entries(root / name):
                digest = sha256(root / entry["file"])
                if digest is None or digest == entry["sha256"]:
                    _put(root, entry)
            unknown += [
                result for result in _results(root / name, root) if not (root / METADATA / _encoded(result)).exists()
            ]
        for result in unknown:
            _mark(root, result)
        write_bytes(root / SYNCED, json.dumps({**synced, **found}, indent=1, sort_keys=True).encode())
    return unknown


def mend(root: Path) -> list[str]:
    """Take away records of Snakemake's that cannot be read, which would end it, and put back those of collections.

    Returns the results that are left without a record: they are marked to be made again, for what is known of them is
    not what they were made from.
    """
    lost = [name for name, record in _records(root) if record is None]
    if not lost:
        return []
    for name in lost:
        (root / METADATA / _encoded(name)).unlink()
    kept = {entry["file"]: entry for file in _collections(root) for entry in _entries(file)}
    unknown = []
    for name in lost:
        digest = sha256(root / name)
        if name in kept and digest in (None, kept[name]["sha256"]):
            _put(root, kept[name])
        elif digest is not None:
            unknown.append(name)
            _mark(root, name)
    return unknown


def expected(root: Path) -> dict[str, str]:
    """The sha256 of each result that is recorded and not being made anew, by its path. Raises ArtifactError for a
    damaged collection."""
    entries = [entry for file in _collections(root) for entry in _entries(file) if entry["sha256"] is not None]
    return {entry["file"]: entry["sha256"] for entry in entries if _is_current(root, entry)}


def _is_current(root: Path, entry: dict[str, Any]) -> bool:
    """Whether what a collection says of a result is the last that is known: a run that was killed collects nothing."""
    place = _encoded(entry["file"])
    if (root / INCOMPLETE / place).exists():
        return False
    own = root / METADATA / place
    return not own.exists() or _read_json(own) == entry["record"]


def _collections(root: Path) -> list[Path]:
    return [file for folder in FOLDERS for file in sorted(root.glob(f"{folder}/{NAME}"))]


def _put(root: Path, entry: dict[str, Any]) -> None:
    write_bytes(root / METADATA / _encoded(entry["file"]), json.dumps(entry["record"]).encode())


def _mark(root: Path, name: str) -> None:
    """Have Snakemake make a result again."""
    write_bytes(root / INCOMPLETE / _encoded(name), json.dumps({"external_jobid": None}).encode())


def _results(collection: Path, root: Path) -> list[str]:
    """The results that lie beside a collection, which may be of any dataset but a trial run's."""
    if collection.parent.parent.name != "results":
        return []
    files = [file for file in sorted(collection.parent.rglob("*")) if file.is_file() and file != collection]
    names = [str(file.relative_to(root)) for file in files if not file.name.startswith(".")]
    return [name for name in names if ".progress." not in name and _UNSHARED not in name]


def _entries(file: Path) -> list[dict[str, Any]]:
    try:
        entries = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if all({"file", "sha256", "record"} <= set(entry) for entry in entries):
            return entries
    except (ValueError, TypeError):
        pass
    raise ArtifactError(
        f"{file}: damaged; `dvc checkout {file.parent} --force` or `dvc pull {file.parent}` restores it"
    )


def _recorded(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Snakemake's own records of finished results, by the result's path."""
    return ((name, record) for name, record in _records(root) if record is not None and not record.get("incomplete"))


def _records(root: Path) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Snakemake's own records by the result's path; None for one that it could not read."""
    from snakemake.persistence import MetadataRecord

    folder = root / METADATA
    for file in sorted(folder.rglob("*")):
        if not file.is_file():
            continue
        try:
            name = _decoded(str(file.relative_to(folder)))
        except ValueError:
            continue  # no record
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            MetadataRecord.model_validate(record)
        except (ValueError, OSError):
            record = None
        yield name, record


def _encoded(name: str) -> str:
    """Where Snakemake keeps the record of a result, inside its folder."""
    longest = os.pathconf(".", "PC_NAME_MAX") - 1
    text = base64.urlsafe_b64encode(name.encode()).decode()
    parts = [text[i : i + longest] for i in range(0, len(text), longest)]
    return "/".join([*(f"@{part}" for part in parts[:-1]), parts[-1]])


def _decoded(place: str) -> str:
    """Inverse of `_encoded`. Raises ValueError for what is no record's place."""
    return base64.urlsafe_b64decode("".join(part.removeprefix("@") for part in place.split("/"))).decode()


def sha256(file: Path) -> str | None:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
