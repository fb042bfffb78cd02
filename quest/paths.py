"""Where every file of a run lies. Patterns with Snakemake's wildcards; `fill` puts values in.

``results/<stage>/<dataset>/<cell>.<ext>``, where a cell is ``<method>-<bits>-seed<seed>``.
What a run gathers from its cells is named by its suite too, as `of_suite` says: the default run's table of digits is
digits.json, that of ``--config suite=methods`` is digits.methods.json.
Every stage writes single files, never folders: only files carry a checksum that Snakemake compares.
"""

from __future__ import annotations

from pathlib import Path

CONFIG = Path("config")

PLAN = "results/plan/{stage}.json"
CELL = "{method}-{bits}-seed{seed}"

REFERENCE = "results/reference/{dataset}/reference.safetensors"
CALIBRATION = "results/calibration/{dataset}/seed{seed}.safetensors"
RECONSTRUCTION = "results/reconstruction/{dataset}/{grouping}-{policy}-w{weight_bits}-seed{seed}.safetensors"
CHECKPOINT = f"results/finetune/{{dataset}}/{CELL}.safetensors"
SAMPLES = f"results/samples/{{dataset}}/{CELL}.{{shard}}.safetensors"
PREVIEW = f"results/previews/{{dataset}}/{CELL}.safetensors"
METRICS = f"results/metrics/{{dataset}}/{CELL}.json"
SCORES = f"results/scores/{{dataset}}/{CELL}.json"
TABLE = "results/tables/{dataset}{of_suite}.json"
TABLE_CSV = "results/tables/{dataset}{of_suite}.csv"
TABLE_MARKDOWN = "results/tables/{dataset}{of_suite}.md"
SAMPLE_GRID = "results/figures/{dataset}{of_suite}/samples.png"
COMPARISON = "results/figures/{dataset}{of_suite}/comparison.png"
ANALYSIS = "results/analysis/{dataset}/{study}"
TRACKING = "results/tracking/{dataset}{of_suite}.json"
PAPER = "results/paper/{dataset}/{table}.json"
PAPER_CSV = "results/paper/{dataset}/{table}.csv"
PAPER_MARKDOWN = "results/paper/{dataset}/{table}.md"
PAPER_TRACKING = "results/tracking/{dataset}/{table}.json"


def of_suite(suite: str | None) -> str:
    """What the files of a suite have in their names: nothing in the default run."""
    return f".{suite}" if suite else ""


def fill(pattern: str, **values: object) -> str:
    """``pattern`` with its wildcards replaced. Raises KeyError for a wildcard without a value."""
    return pattern.format(**values)
