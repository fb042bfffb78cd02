"""From calls to the cost of a job, and how an estimate and a record are shown."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from quest.config.dataset import DatasetSettings
from quest.estimate import costs, report
from quest.estimate.calls import Calls, Took
from quest.estimate.costs import Cost, Estimator
from quest.estimate.networks import Model
from quest.estimate.plan import Job
from quest.estimate.schedule import Schedule
from quest.estimate.speed import Speed

HEADER = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
CELL = {"dataset": "tiny", "method": "quest", "bits": "w4a4", "seed": "0"}


@pytest.fixture
def estimator(settings: DatasetSettings, tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Estimator:
    """Every call takes a second and 1,000 bytes, every start two seconds and a million."""
    monkeypatch.setattr(Calls, "take", lambda *_: Took(1.0, 1000.0))
    monkeypatch.setattr(Speed, "start", lambda *_: Took(2.0, 1e6))
    monkeypatch.setattr(costs, "load_dataset", lambda _: settings)
    monkeypatch.setattr(costs.networks, "model", lambda *_: tiny)
    return costs.prepare(jobs(settings), Speed(tmp_path / "speed.json", torch.device("cpu")))


def jobs(settings: DatasetSettings) -> list[Job]:
    return [
        Job("calibrate", ("c",), {"dataset": "tiny", "seed": "0"}, settings, threads=2, benchmark=Path("b/c.tsv")),
        Job("sample", ("s",), CELL | {"shard": "0"}, settings, needs=(0,), benchmark=Path("b/s.tsv")),
        Job("score", ("p",), CELL, needs=(1,)),
    ]


def test_seconds_are_those_of_the_start_and_of_all_calls(estimator: Estimator, settings: DatasetSettings) -> None:
    calibrate, sample, score = map(estimator.cost, jobs(settings))
    assert calibrate.seconds == 2 + 4 / 2  # 4 steps, one batch, on two threads
    assert sample.seconds == 2 + 4 + 1  # 32 images in a batch: 4 steps, and the first stage that it has not
    assert score.seconds == 2
    assert not calibrate.reckoned


def test_disk_is_what_the_shapes_say(estimator: Estimator, settings: DatasetSettings) -> None:
    calibrate, sample, _ = map(estimator.cost, jobs(settings))
    assert calibrate.disk == 4 * 8 * 64 * 4  # steps, samples, pixels, bytes
    assert sample.disk == 32 * 64
    cells = [Job("finetune", ("f",), CELL | {"method": "nearest", "bits": bits}, settings) for bits in ("w8a8", "w4a4")]
    estimator.speed.measure(estimator.networks["tiny"], costs.work.of(cells[0]))
    eight, four = (estimator.cost(cell).disk for cell in cells)
    assert eight - four == estimator.networks["tiny"].size.weights / 2


def test_memory_grows_with_what_is_cached(estimator: Estimator, settings: DatasetSettings) -> None:
    def memory(samples: int) -> float:
        own = settings.reconstruction.model_copy(update={"samples": samples})
        job = Job("reconstruct", ("r",), {"dataset": "tiny"}, settings.model_copy(update={"reconstruction": own}))
        estimator.speed.measure(estimator.networks["tiny"], costs.work.of(job))
        return estimator.cost(job).memory

    size = estimator.networks["tiny"].size
    assert memory(32) - memory(16) == 16 * (size.cache_bytes + 2 * size.kept_bytes)


def test_a_cache_beyond_its_budget_is_in_host_memory(estimator: Estimator, settings: DatasetSettings) -> None:
    size = estimator.networks["tiny"].size

    def held(cache_mib: int) -> tuple[float, float]:
        own = settings.reconstruction.model_copy(update={"cache_mib": cache_mib, "samples": 2_000})
        chosen = settings.calibration.model_copy(update={"samples_per_step": 1_000})
        content = settings.model_copy(update={"reconstruction": own, "calibration": chosen})
        return costs._held(Job("reconstruct", ("r",), {"dataset": "tiny"}), content, size)

    (fits, passed), (without, spilled) = held(4096), held(1)
    assert passed == 2_000 * 2 * size.kept_bytes > 2**20
    assert fits - without == spilled - 2**20 == 2_000 * size.cache_bytes > 2**20


def test_the_table_has_a_row_a_stage_and_the_whole(settings: DatasetSettings) -> None:
    found = [
        Cost(3600.0, 3600.0, 2**30, 0.0, 2**29),
        Cost(1800.0, 1800.0, 2**31, 0.0, 2**29),
        Cost(36.0, 36.0, 2**28, 0.0, 0.0),
    ]
    stages = report.by_stage(jobs(settings), found)
    shown = report.table(stages, Schedule(5436.0, 5436.0, 2**31), 2, "a machine")
    rows = [line.split() for line in shown.splitlines()]
    assert rows[0][:3] == ["stage", "jobs", "hours"]
    assert [row[:3] for row in rows[1:5]] == [
        ["calibrate", "1", "1.000"],
        ["sample", "1", "0.500"],
        ["score", "1", "0.010"],
        ["all", "3", "1.510"],
    ]
    assert "on 2 cores of this machine, idle otherwise: 1.5 h" in shown
    assert "extrapolation" not in shown
    whole = report.as_json(stages, Schedule(5436.0, 5436.0, 2**31), 2, "a machine")
    assert whole["disk_bytes"] == 2**30
    assert whole["stages"]["sample"]["memory"] == 2**31


def test_what_is_reckoned_says_so() -> None:
    shown = report.table({"sample": [Cost(1.0, 1.0, 1.0, 0.0, 1.0, reckoned=True)]}, Schedule(1, 1, 1), 2, "a machine")
    assert "sample*" in shown
    assert "* An extrapolation" in shown


def test_nothing_to_do_is_said() -> None:
    assert "nothing to do" in report.table({}, Schedule(0, 0, 0), 2, "a machine")


def test_the_check_compares_with_what_snakemake_wrote(settings: DatasetSettings, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name, seconds, memory, computing in (("c", 20.0, 512, 36.0), ("s", 50.0, "NA", "NA")):
        row = f"{seconds}\t0:00:01\t{memory}\t1\t1\t1\t0\t0\t99\t{computing}\n"
        (tmp_path / f"b/{name}.tsv").write_text(HEADER + row)
    found = [Cost(18.0, 36.0, 2**30, 0.0, 0.0), Cost(1.0, 1.0, 1.0, 0.0, 0.0), Cost(1.0, 1.0, 1.0, 0.0, 0.0)]
    rows = [line.split() for line in report.check(jobs(settings), found, tmp_path).splitlines()]
    # The other job ended before it was looked at.
    assert rows[1] == ["calibrate", "1", "18.0", "20.0", "0.90", "36.0", "1.00", "1.00", "0.50", "2.00"]
    assert rows[2] == []
    with pytest.raises(ValueError, match="none of the jobs of this run has a benchmark file"):
        report.check(jobs(settings), found, tmp_path / "elsewhere")
