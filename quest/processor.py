"""What this machine's processor is called."""

from __future__ import annotations

import platform
from pathlib import Path


def name() -> str:
    """Like "Intel(R) Xeon(R) Processor @ 2.60GHz"; of an operating system that does not tell, its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
