"""Which device a stage runs on, and what fits into its memory."""

from __future__ import annotations

import fcntl
import gc
import getpass
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

import torch

from quest import resident
from quest.config.values import ConfigError

T = TypeVar("T")
MEMORY = "QUEST_MEMORY_GIB"
_limit: ContextVar[float | None] = ContextVar("limit", default=None)  # GiB
_taken: list[int] = []  # descriptors of the locks that this process holds until it ends


def resolve(name: str) -> torch.device:
    """For "auto" a GPU, or else the CPU; otherwise the device named. Raises ValueError when there is none.

    Of several GPUs, "auto" takes one that the fewest processes took like this. From then on the device computes in
    float32 where it is told to: by default a GPU rounds the operands of convolutions to TF32, which has the 10 bits of
    a half, so that the same cell would differ between machines.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if name == "auto" and not torch.cuda.is_available():
        return torch.device("cpu")
    try:
        device = torch.device("cuda" if name == "auto" else name)
    except RuntimeError as error:
        raise ValueError(f"device: {name!r} is not a device; expected auto, cpu or cuda[:index]") from error
    if device.type == "cuda":
        if (device.index or 0) >= (count := torch.cuda.device_count()):
            raise ValueError(f"device: {name!r} is not there; this machine has {count} GPUs")
        if name == "auto" and count > 1:
            device = torch.device("cuda", _place([str(torch.cuda.get_device_properties(i).uuid) for i in range(count)]))
        torch.cuda.set_device(device.index or 0)
    return device


def _place(gpus: list[str]) -> int:
    """Take the next place on one of the GPUs, named by what they are called everywhere; returns which.

    A place is a lock, which ends with its process: the first places of all GPUs are taken before any second.
    """
    folder = Path(tempfile.gettempdir()) / f"quest-gpus-{getpass.getuser()}"
    folder.mkdir(exist_ok=True)
    place = 0
    while True:
        for index, gpu in enumerate(gpus):
            descriptor = os.open(folder / f"{gpu}.{place}", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
            else:
                _taken.append(descriptor)
                return index
        place += 1


@contextmanager
def limited(gib: float | None) -> Iterator[None]:
    """Within, this is the limit of `memory_limit`, in GiB; None leaves it as it is, infinity is none.

    Raises ConfigError for a limit, or an environment, that is not above 0.
    """
    if gib is None:
        memory_limit()  # refused before the work, not in the middle of it
        yield
        return
    if not gib > 0:
        raise ConfigError(f"--memory: found {gib:g}; expected GiB, more than 0")
    token = _limit.set(gib)
    try:
        yield
    finally:
        _limit.reset(token)


def memory_limit() -> float:
    """Bytes of the device that training through a whole network may take, infinite where nobody said: as `limited`
    does, or else the environment (QUEST_MEMORY_GIB). What is computed does not depend on it.

    Raises ConfigError where the environment has no number above 0.
    """
    given = _limit.get()
    if given is None:
        found = os.environ.get(MEMORY) or "inf"
        try:
            given = float(found)
        except ValueError:
            given = math.nan
        if not given > 0:
            raise ConfigError(f"{MEMORY}: found {found!r}; expected GiB, a number above 0")
    return given * 2**30


def held(device: torch.device) -> float:
    """Bytes that are in use now: of a GPU by this process's tensors, of a CPU by the process."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident.now()


class OutOfMemory(ValueError):
    """A batch is too large for the device's memory; the message says which setting asks for it, and what fits."""


def within_memory(setting: str, size: int, call: Callable[[int], T]) -> T:
    """``call(size)``, which works on a batch of so many samples at once.

    Where the device's memory does not hold it, halves of it are tried until one does, and OutOfMemory is raised: a
    batch that nobody asked for would change the result. What was begun is lost, so a trial may change anything.
    """
    try:
        return call(size)
    except torch.OutOfMemoryError as error:
        found = str(error).partition(". ")[0]
    fits = size // 2
    while fits and not _fits(call, fits):
        fits //= 2
    told = f"{setting}: a batch of {size} does not fit in the device's memory ({found})"
    if not fits:
        raise OutOfMemory(f"{told}, nor does a single sample; free the device, or take another by --device")
    raise OutOfMemory(f"{told}; {fits} fits, found by halving: set {setting} to {fits}, or free the device")


def _fits(call: Callable[[int], object], size: int) -> bool:
    gc.collect()  # what the last trial left
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        call(size)
    except torch.OutOfMemoryError:
        return False
    return True
