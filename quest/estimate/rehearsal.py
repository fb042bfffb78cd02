"""An estimate beside what then happens: one cell of a dataset from calibration to metrics, a process a job.

What is learned and drawn may be cut down, so that minutes are enough; both sides have the same settings.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from quest import methods
from quest.bench import testkit
from quest.config.dataset import DatasetSettings, load_dataset
from quest.config.reading import merged, validate
from quest.config.values import FULL_PRECISION, UNQUANTIZED, Bits, ConfigError
from quest.estimate import costs
from quest.estimate.costs import Cost
from quest.estimate.plan import Job
from quest.estimate.speed import THREADS, Speed
from quest.report import text
from quest.stages import import_model


class Step(NamedTuple):
    """A job, and the arguments of its stage's command. name: as it is shown."""

    name: str
    job: Job
    arguments: tuple[str, ...]


class Pair(NamedTuple):
    """What a step was estimated to cost, and what it cost: seconds of computing on a CPU, by the clock on a GPU."""

    name: str
    estimated: Cost
    happened: Cost


def settings_of(dataset: str, changes: Sequence[str]) -> DatasetSettings:
    """A dataset's protocol, all images in one shard, with ``changes`` like ``reconstruction.iterations=50``. Raises
    ConfigError."""
    tree: dict[str, Any] = {"evaluation": {"shards": 1}}
    for change in changes:
        path, equals, value = change.partition("=")
        if not equals:
            raise ConfigError(f"--set {change}: expected KEY=VALUE, like reconstruction.iterations=50")
        *sections, key = path.split(".")
        here = tree
        for section in sections:
            here = here.setdefault(section, {})
        here[key] = json.loads(value) if value[:1] in '0123456789[{"' else value
    content = load_dataset(dataset).model_dump(mode="json", exclude_unset=True)
    return validate(DatasetSettings, merged(content, tree), f"{dataset} with --set")


def run(dataset: str, settings: DatasetSettings, method: str, bits: str, folder: Path, speed: Speed) -> Iterator[Pair]:
    """Estimate every step, then do one after another and yield what it took; files go into ``folder``.

    A model that is not here has random weights.
    """
    model = settings.model if settings.model.is_file() else _random(dataset, settings, folder)
    plan = list(steps(dataset, settings, model, method, bits, folder))
    estimator = costs.prepare([step.job for step in plan], speed)
    estimated = [estimator.cost(step.job) for step in plan]
    for step, cost in zip(plan, estimated, strict=True):
        yield Pair(step.name, cost, _happened(step, folder, speed.device))


def steps(dataset: str, settings: DatasetSettings, model: Path, method: str, bits: str, folder: Path) -> Iterator[Step]:
    """The chain of one cell; without metrics where there is no extractor."""
    weights = str(Bits.parse(bits).weight)
    calibration, checkpoint = folder / "calibration.safetensors", folder / "checkpoint.safetensors"
    rounding = methods.starts_from(method, settings.method(method))
    cell = {"method": method, "bits": bits, "seed": "0"}

    def step(name: str, rule: str, wildcards: Mapping[str, str], files: Mapping[str, Path], *more: str) -> Step:
        named = [part for key, file in files.items() for part in (f"--{key}", str(file))]
        output = files["output"]
        job = Job(rule, (str(output),), {"dataset": dataset} | dict(wildcards), settings, threads=THREADS)
        return Step(name, job, (dataset, *more, "--settings", settings.model_dump_json(), *named))

    yield step("calibrate", "calibrate", {}, {"model": model, "output": calibration})
    learned = {}
    if rounding is not None:
        learned = {"reconstruction": folder / "rounding.safetensors"}
        files = {"model": model, "calibration": calibration, "output": learned["reconstruction"]}
        how = "--weight-bits", weights, "--grouping", rounding.grouping, "--policy", rounding.policy
        yield step("reconstruct", "reconstruct", {}, files, *how)
    files = {"model": model, "calibration": calibration, **learned, "output": checkpoint}
    yield step(f"finetune, {method} {bits}", "finetune", cell, files, "--method", method, "--bits", bits)
    drawn = {}
    for name, wildcards, given in (
        ("full precision", {"method": FULL_PRECISION, "bits": UNQUANTIZED, "seed": "0"}, {}),
        (f"{method} {bits}", cell, {"checkpoint": checkpoint}),
    ):
        drawn[name] = folder / f"{wildcards['method']}.safetensors"
        files = {"model": model, **given, "output": drawn[name]}
        yield step(f"sample, {name}", "sample", wildcards | {"shard": "0"}, files)
    if not settings.extractor.is_file():
        return
    real, extractor = folder / "reference.safetensors", settings.extractor
    yield step("reference", "reference", {}, {"extractor": extractor, "output": real})
    teacher, student = drawn.values()
    files = {"full-precision": teacher, "reference": real, "extractor": extractor, "checkpoint": checkpoint}
    files |= {"model": model, "output": folder / "metrics.json"}
    yield step("measure", "measure", cell, files, str(student))


def _random(dataset: str, settings: DatasetSettings, folder: Path) -> Path:
    """A model of the dataset's size with random weights, imported from its published layout."""
    source = folder / ("source.ckpt" if settings.architecture else "source")
    testkit.random_checkpoint(dataset, source, settings.architecture)
    model = folder / "denoiser.safetensors"
    import_model.run(dataset, settings.model_copy(update={"source_sha256": None}), str(source), model)
    return model


def _happened(step: Step, folder: Path, device: torch.device) -> Cost:
    report = folder / "took.json"
    command = [sys.executable, "-m", "quest.bench.process", str(report), step.job.rule.replace("_", "-")]
    arguments = [*step.arguments, *([] if step.job.rule == "import_model" else ["--device", str(device)])]
    begun = time.perf_counter()
    ended = subprocess.run(
        [*command, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": str(THREADS), "TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    clock = time.perf_counter() - begun
    if ended.returncode:
        raise ConfigError(f"{step.name} ended with {ended.returncode}: {ended.stderr.strip().splitlines()[-1:]}")
    computing, memory, gpu_memory = json.loads(report.read_text(encoding="utf-8"))
    return Cost(clock, computing, memory, gpu_memory, Path(step.job.outputs[0]).stat().st_size)


def sentence(pair: Pair, device: torch.device) -> str:
    """Seconds of a step, as estimated and as they were."""
    estimated, happened = _seconds(pair, device)
    return f"{pair.name}: estimated {estimated:.1f} s, took {happened:.1f} s"


def _seconds(pair: Pair, device: torch.device) -> list[float]:
    return [each.seconds if device.type == "cuda" else each.computing for each in (pair.estimated, pair.happened)]


def table(pairs: Sequence[Pair], device: torch.device) -> str:
    """A row a step: seconds, memory and disk, as estimated and as they were, and their ratio."""
    on_gpu = device.type == "cuda"
    rows = [
        ("step", "estimate s", "took s", "ratio", "estimate GiB", "took GiB", "ratio", "estimate MiB", "disk", "ratio")
    ]
    for pair in pairs:
        both = pair.estimated, pair.happened
        memory = [(each.gpu_memory if on_gpu else each.memory) / 2**30 for each in both]
        disk = [each.disk / 2**20 for each in both]
        rows.append(
            (pair.name, *_beside(_seconds(pair, device), ".1f"), *_beside(memory, ".2f"), *_beside(disk, ".2f"))
        )
    what = "by the clock, memory of the GPU" if on_gpu else "of computing, memory resident"
    return f"{text.table(rows)}\n\nSeconds {what}. Ratios are estimate / took."


def _beside(values: Sequence[float], form: str) -> tuple[str, str, str]:
    estimated, happened = values
    ratio = f"{estimated / happened:.2f}" if happened else "–"
    return format(estimated, form), format(happened, form), ratio
