"""What this machine is called where times are kept: its GPUs, or else its processor, and how many there are of them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter

from quest import processor


def name() -> str:
    """Like "2 × NVIDIA H200" or "2 × Intel(R) Xeon(R) Processor @ 2.60GHz" (threads that it runs at once)."""
    found = _gpus() or [processor.name()] * (os.cpu_count() or 1)
    return ", ".join(f"{count} × {each}" for each, count in Counter(found).items())


def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    told = subprocess.run(asked, capture_output=True, text=True, timeout=60)
    return [line.strip() for line in told.stdout.splitlines() if line.strip()] if told.returncode == 0 else []
