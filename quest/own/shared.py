"""Files that several processes need: the first that comes makes one, and the others wait for it."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path


def made(path: Path, make: Callable[[Path], object]) -> Path:
    """``path``, by ``make`` where it is not there yet. Where a process is killed over it, the next one makes it."""
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.parent / f".{path.name}.lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # until it is closed, by the end of the process at the latest
        if not path.is_file():
            make(path)
            lock.unlink()  # who comes from now on finds the file, and asks for no lock
    return path
