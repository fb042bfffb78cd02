"""A cell is rehearsed with the settings that it was estimated with, each job by the command that its rule calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
import torch

from quest import stages
from quest.bench import process
from quest.config.values import ConfigError
from quest.estimate import rehearsal, work
from quest.estimate.costs import Cost
from quest.estimate.rehearsal import Pair

FOLDER = Path("folder")


def test_keys_of_the_protocol_can_be_set() -> None:
    found = rehearsal.settings_of(
        "shapes-text", ["reconstruction.iterations=20", 'methods.quest.stages=["tla"]', "condition.prompts=other.txt"]
    )
    assert found.reconstruction.iterations == 20
    assert found.method("quest").stages == ("tla",)  # type: ignore[attr-defined]
    assert found.condition is not None
    assert found.condition.prompts == Path("other.txt")
    assert found.evaluation.shards == 1
    assert found.sampler.kind == "plms"  # what is not set stays


@pytest.mark.parametrize(
    ("change", "says"),
    [("reconstruction.iterations", "expected KEY=VALUE"), ("reconstruction.iteration=3", "shapes with --set")],
)
def test_what_cannot_be_set_is_named(change: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        rehearsal.settings_of("shapes", [change])


def test_the_chain_is_that_of_a_cell_and_estimated_by_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda _: True)  # the extractor
    settings = rehearsal.settings_of("shapes", ["evaluation.images=100"])
    found = list(rehearsal.steps("shapes", settings, Path("model"), "quest", "w4a8", FOLDER))
    names = ["calibrate", "reconstruct", "finetune, quest w4a8", "sample, full precision", "sample, quest w4a8"]
    assert [step.name for step in found] == [*names, "reference", "measure"]
    for step in found:
        given = stages.command(step.job.rule).make_context(step.job.rule, list(step.arguments)).params
        assert stages.protocol("shapes", given["settings"]) == step.job.settings == settings
        assert Path(step.job.outputs[0]) == given["output"]
    images = [sum(call.batch * n for call, n in work.of(step.job).items() if call.kind == "decode") for step in found]
    assert images == [0, 0, 0, 100, 100, 0, 0]


def test_a_method_without_learned_rounding_has_no_reconstruction() -> None:
    settings = rehearsal.settings_of("shapes", ["extractor=none.safetensors"])
    rules = [step.job.rule for step in rehearsal.steps("shapes", settings, Path("m"), "efficientdm", "w4a4", FOLDER)]
    assert rules == ["calibrate", "finetune", "sample", "sample"]


def test_a_process_says_what_its_stage_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    stage = click.Command("stage", params=[click.Option(["--seed"], type=int)], callback=lambda seed: done.append(seed))
    monkeypatch.setattr(stages, "command", lambda _: stage)
    process.main(tmp_path / "took.json", "stage", ["--seed", "3"])
    computing, resident, on_gpu = json.loads((tmp_path / "took.json").read_text())
    assert done == [3]
    assert computing > 0
    assert resident > 10e6
    assert on_gpu >= 0


def test_ratios_are_of_computing_on_a_cpu_and_of_the_clock_on_a_gpu() -> None:
    pair = Pair("sample", Cost(10.0, 20.0, 2**31, 2**30, 2**20), Cost(20.0, 25.0, 2**30, 2**31, 2**21))
    cpu, gpu = (rehearsal.table([pair], torch.device(kind)).splitlines()[1].split() for kind in ("cpu", "cuda"))
    assert cpu == ["sample", "20.0", "25.0", "0.80", "2.00", "1.00", "2.00", "1.00", "2.00", "0.50"]
    assert gpu == ["sample", "10.0", "20.0", "0.50", "1.00", "2.00", "0.50", "1.00", "2.00", "0.50"]
