"""Whether another run lives in a folder: what tells a lock that was left behind from one that is held.

Snakemake locks a run's files by files of its own in ``.snakemake/locks``, which stay when it is killed. So each run
also holds an flock on ``.snakemake/runs/<host>.<process>`` for as long as it lives; the kernel lets go of it however
the run ends, and no job inherits it. Where Snakemake's locks are left and no run holds its file, the locks are
nobody's, and go. Where a file system has no flock, and for runs of another machine, nothing is decided here.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from pathlib import Path

RUNS = Path(".snakemake/runs")
LOCKS = Path(".snakemake/locks")
_BOOT = Path("/proc/sys/kernel/random/boot_id")  # of this kernel, also inside a container

_held: dict[Path, int] = {}  # file of this process to its descriptor


def enter(root: Path) -> None:
    """Say that this process runs in ``root``, and remove locks there that no living run holds."""
    if _hold(root) and not others(root):
        for file in (root / LOCKS).glob("*.lock"):
            file.unlink(missing_ok=True)


def others(root: Path) -> list[dict[str, str]]:
    """The runs in ``root`` beside this one, {"host", "process"}, that live or may live; files of dead ones are
    removed."""
    own = _file(root)
    found = [_living(file) for file in sorted((root / RUNS).glob("*.*")) if file != own]
    return [run for run in found if run is not None]


def refusal(root: Path) -> str:
    """Why Snakemake, which found files of a run locked, cannot go on in ``root``: one sentence."""
    if not (living := others(root)):
        return f"{root}: locked by a run that may live; if none does, `snakemake --unlock` frees it"
    run = living[0]
    where = "" if run["host"] == socket.gethostname() else f" on {run['host']}"
    return f"{root}: process {run['process']}{where} is at work on the same files; wait until it has ended, or end it"


def _hold(root: Path) -> bool:
    """Hold this process's file for as long as it lives. False where the file system cannot."""
    file = _file(root)
    if file in _held and _is_open_file(_held[file], file):
        return True
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_open_file(descriptor, file):
                break
            os.close(descriptor)  # taken for a dead run's and removed before it was locked
        os.truncate(descriptor, 0)
        os.write(descriptor, json.dumps({"host": socket.gethostname(), "boot": _boot()}).encode())
    except OSError:
        return False
    _held[file] = descriptor
    return True


def _living(file: Path) -> dict[str, str] | None:
    """The run of ``file``, or None if it is dead, whose file is then removed."""
    host, _, process = file.name.rpartition(".")
    try:
        descriptor = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return None
    except OSError:
        return {"host": host, "process": process}
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if host == socket.gethostname() or _boot_of(descriptor) == _boot() != "":
            file.unlink(missing_ok=True)
            return None
    except OSError:
        pass
    finally:
        os.close(descriptor)
    return {"host": host, "process": process}


def _file(root: Path) -> Path:
    return root.resolve() / RUNS / f"{socket.gethostname()}.{os.getpid()}"


def _is_open_file(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except OSError:
        return False


def _boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""


def _boot_of(descriptor: int) -> str:
    try:
        return json.loads(os.pread(descriptor, 1000, 0))["boot"]
    except (ValueError, KeyError, TypeError):
        return ""
