"""What was measured is kept and not measured again; calls between and beyond it are on its line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from quest.config.dataset import DatasetSettings
from quest.estimate import methods, work
from quest.estimate import speed as speeds
from quest.estimate.calls import Calls, Took
from quest.estimate.networks import Model
from quest.estimate.speed import Network, Speed, line
from quest.estimate.work import Call

CPU = torch.device("cpu")
KINDS = [
    *(work.FORWARD, work.QUANTIZED, work.INTEGERS, work.BUILD, work.CHOOSE, work.RANGES, work.RECORD, work.RECORD_FULL),
    *(work.ROUNDING, work.SCALES, *methods.kinds(), work.FEATURES, work.METRICS, work.TRAIN),
]


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Calls that take 0.1 s and 0.01 s a sample, and 5 bytes a sample; the list of those that were timed."""
    taken: list[Call] = []

    def take(_self: Calls, kind: str, batch: int) -> Took:
        taken.append(Call(kind, batch))
        return Took(0.1 + 0.01 * batch, 5.0 * batch)

    monkeypatch.setattr(Calls, "take", take)
    return taken


def test_every_kind_of_call_can_be_timed(settings: DatasetSettings, tiny: Model) -> None:
    calls = Calls(settings, tiny, CPU)
    took = {kind: calls.take(kind, 64 if kind == work.METRICS else 2) for kind in KINDS}
    assert [kind for kind, each in took.items() if not each.seconds > 0] == []
    assert calls.take(work.DECODE, 2).seconds == 0  # a model of pixels has no first stage


def test_more_samples_take_longer(settings: DatasetSettings, tiny: Model) -> None:
    calls = Calls(settings, tiny, CPU)
    assert calls.take(work.FORWARD, 256).seconds > 2 * calls.take(work.FORWARD, 8).seconds


def test_between_and_beyond_two_batches() -> None:
    points = {"10": [1.0, 100.0], "20": [1.5, 150.0]}
    assert line(points, 15) == Took(1.25, 125.0)
    assert line(points, 40) == Took(2.5, 250.0)
    assert line({"10": [1.0, 100.0]}, 5) == Took(0.5, 50.0)


def test_a_kind_is_measured_at_two_batches_and_once(
    settings: DatasetSettings, tiny: Model, steady: list[Call], tmp_path: Path
) -> None:
    asked = [Call("forward", 250), Call("forward", 64), Call("forward", 36)]
    network = Network("tiny", settings, tiny)
    speed = Speed(tmp_path / "speed.json", CPU)
    speed.measure(network, asked)
    # 16 samples take 0.26 s, so 3 s are enough for 184.
    assert steady == [Call("forward", 16), Call("forward", 184)]
    assert speed.took(network, Call("forward", 250)).seconds == pytest.approx(2.6)
    steady.clear()
    again = Speed(tmp_path / "speed.json", CPU)
    again.measure(network, [Call("forward", 100)])
    assert steady == []
    again.forget()
    again.measure(network, [Call("forward", 100)])
    assert steady == [Call("forward", 16), Call("forward", 100)]


def test_what_another_machine_measured_stays(
    settings: DatasetSettings, tiny: Model, steady: list[Call], tmp_path: Path
) -> None:
    file = tmp_path / "speed.json"
    file.write_text(json.dumps({"another": {"starts": {}, "networks": {"digits": {}}}}))
    Speed(file, CPU).measure(Network("tiny", settings, tiny), [Call("forward", 8)])
    kept = json.loads(file.read_text())
    assert kept["another"] == {"starts": {}, "networks": {"digits": {}}}
    assert len(kept) == 2


def test_a_network_too_large_is_reckoned_by_its_operations(
    settings: DatasetSettings, tiny: Model, steady: list[Call], tmp_path: Path
) -> None:
    large, small = Network("large", settings, tiny), Network("small", settings, tiny)
    large.size = replace(large.size, flops=3e10, units=2 * small.size.units)
    speed = Speed(tmp_path / "speed.json", CPU)
    assert not speed.measured(large)
    speed.measure(small, [Call("forward", 2), Call("record", 2)])
    times = 3e10 / small.size.flops
    one = speed.took(small, Call("forward", 2)).seconds  # of one batch alone, so all of it is the samples'
    assert speed.took(large, Call("forward", 8), small).seconds == pytest.approx(4 * times * one)
    assert speed.took(large, Call("record", 2), small).seconds == pytest.approx(2 * times * one)


def test_the_start_of_a_process_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speed = Speed(tmp_path / "speed.json", CPU)
    start = speed.start("score")
    assert 0.05 < start.seconds < 30
    assert 5e6 < start.bytes < 2e9
    monkeypatch.setattr(speeds.subprocess, "run", lambda *_, **__: pytest.fail("measured again"))
    assert Speed(tmp_path / "speed.json", CPU).start("score") == start
