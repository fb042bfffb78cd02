"""Memory of this process: what it holds now, and the most that it held since it was last asked to begin anew."""

from __future__ import annotations

import ctypes
import gc
import re
import resource
import sys
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # Linux
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of the GNU library


def now() -> float:
    """Bytes in memory; where the system does not say, `peak`."""
    return _read("VmRSS")


def peak() -> float:
    """The most bytes in memory since `begin_anew`; where the system does not say, ever."""
    return _read("VmHWM")


def begin_anew() -> None:
    """Give back what was freed and is kept for later, and begin `peak` anew; where the system can."""
    gc.collect()
    if _TRIM is not None:
        _TRIM(0)
    if _CLEAR.exists():
        _CLEAR.write_text("5")


def _read(key: str) -> float:
    found = re.search(rf"^{key}:\s+(\d+) kB", _STATUS.read_text(), re.M) if _STATUS.exists() else None
    if found is not None:
        return float(found[1]) * 2**10
    # Of a child it may be what its parent held, for it counts from before the program began.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 2**10)
