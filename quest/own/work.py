"""The folder beside an output in which a conversion keeps what is done so far, so that it goes on after a kill.

What is in it is used again only by the same request: model, bits, settings and seed. One process works in it at a time.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quest import artifacts
from quest.artifacts import ArtifactError

_STATE, _LOCK = "state.json", ".lock"
MODEL, PIPELINE, SPEED = "model.safetensors", "pipeline", "speed.json"
"""Files that stay whatever the request: of the model alone, and of the machine."""


class Work:
    """A folder of files of one request, and ``state``, plain JSON that `keep` writes."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.state: dict[str, Any] = {}

    def file(self, name: str) -> Path:
        return self.folder / name

    def begin(self, request: dict[str, Any]) -> bool:
        """Go on with what was begun for ``request``, or begin anew; whether it goes on."""
        digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        state = self._read()
        if state.get("request_sha256") == digest:
            self.state = state
            return True
        for each in self.folder.iterdir():
            if each.name not in (MODEL, PIPELINE, SPEED, _LOCK):
                each.unlink() if each.is_file() else shutil.rmtree(each)
        self.state = {"request_sha256": digest, "request": request}
        self.keep()
        return False

    def keep(self, **changes: Any) -> None:
        """Put ``changes`` into the state, and the state on disk."""
        self.state |= changes
        artifacts.write_bytes(self.file(_STATE), json.dumps(self.state, indent=1).encode())

    def _read(self) -> dict[str, Any]:
        try:
            return json.loads(self.file(_STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}


def place(output: Path) -> Path:
    """Where the work towards ``output`` is kept."""
    return output.parent / f"{output.name}.work"


@contextmanager
def working(output: Path) -> Iterator[Work]:
    """The work towards ``output``; it is removed when the block ends well, and stays otherwise, once it has begun.

    Raises ArtifactError where another process is at it, or the folder cannot be made.
    """
    folder = place(output)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _LOCK).exists():
        raise ArtifactError(f"{folder}: is no work of quest; move it, or name another --output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ArtifactError(f"{folder}: could not be written ({error.strerror or error})") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArtifactError(
                f"{folder}: another process is quantizing to {output}; wait for it, or name another --output"
            ) from None
        _remove_left(output)
        try:
            yield Work(folder)
        except BaseException:
            if not (folder / _STATE).exists():  # refused before anything was done
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _remove_left(output: Path) -> None:
    """What a process that was killed while it exported has left beside the output."""
    for left in output.parent.glob(f".{glob.escape(output.name)}.*.partial"):
        shutil.rmtree(left, ignore_errors=True)
