"""What DVC's stages depend on: of every job of the default run its settings and code, a file a stage.

`python -m workflow.plan` writes ``results/plan/<stage>.json`` from the jobs that Snakemake plans, so that a stage of
`dvc repro` runs again for what reruns one of its jobs, and for nothing else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quest.artifacts import write_bytes
from quest.paths import PLAN, fill
from workflow.jobs import planned

_DECIDES = ("settings", "code")


def plan(root: Path) -> dict[str, dict[str, Any]]:
    """Stage to job (its first output) to the settings and the code that decide whether it runs again."""
    found: dict[str, dict[str, Any]] = {}
    for job in planned(root, every=True).jobs:
        if not job.rule.norun:
            decides = {name: job.params.get(name) for name in _DECIDES if job.params.get(name) is not None}
            found.setdefault(job.rule.name, {})[str(job.output[0])] = decides
    return found


def main() -> None:
    """Write the plan of the project in the current folder."""
    root = Path.cwd()
    for stage, jobs in plan(root).items():
        data = json.dumps(jobs, indent=1, sort_keys=True).encode() + b"\n"
        write_bytes(root / fill(PLAN, stage=stage), data)


if __name__ == "__main__":
    main()
