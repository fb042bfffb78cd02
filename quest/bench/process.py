"""Runs a stage in this process and says what it took: ``python -m quest.bench.process REPORT STAGE [ARGUMENTS]``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from quest import resident, stages


def main(report: Path, stage: str, arguments: list[str]) -> None:
    """Write seconds of computing, and the most bytes that were held, resident and on a GPU, as JSON to ``report``."""
    stages.command(stage)(arguments, standalone_mode=False)
    torch = sys.modules.get("torch")
    on_gpu = 0 if torch is None or not torch.cuda.is_available() else torch.cuda.max_memory_allocated()
    report.write_text(json.dumps([time.process_time(), resident.peak(), on_gpu]), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
