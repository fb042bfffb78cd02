"""The calls that are counted are those that the stages make: compared with the library's own counts and walks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from quest import methods
from quest.config.dataset import DatasetSettings, load_dataset
from quest.config.methods import METHODS
from quest.config.values import Bits, ConfigError
from quest.deploy import start
from quest.diffusion.samplers import Sampler
from quest.estimate import methods as costs_of_methods
from quest.estimate import work
from quest.estimate.networks import Model
from quest.estimate.plan import Job
from quest.estimate.work import Call
from quest.learning import reconstruction
from quest.learning.calibration import Calibration
from quest.quantization.network import QuantizedNetwork


def job(rule: str, settings: DatasetSettings, **wildcards: str) -> Job:
    return Job(rule, ("file",), {"dataset": "some", **wildcards}, settings)


def changed(dataset: str, **sections: Any) -> DatasetSettings:
    content = load_dataset(dataset).model_dump(mode="json")
    for section, values in sections.items():
        content[section] = content[section] | values
    return DatasetSettings.model_validate(content)


def test_samples_go_in_batches_of_which_the_last_is_smaller() -> None:
    assert work.calls("forward", 130, 64, 3) == {Call("forward", 64): 6, Call("forward", 2): 3}
    assert work.calls("forward", 64, 64) == {Call("forward", 64): 1}
    assert work.calls("forward", 3, 64) == {Call("forward", 3): 1}


def test_calibration_walks_all_steps_in_batches_of_64() -> None:
    settings = changed("digits", calibration={"samples_per_step": 100, "steps": 20})
    assert work.of(job("calibrate", settings, seed="0")) == {Call("forward", 64): 20, Call("forward", 36): 20}


def test_plms_calls_once_more_and_guidance_doubles_the_batch() -> None:
    settings = load_dataset("shapes-text")  # 25 steps of PLMS, guided
    calls = work.of(job("sample", settings, method="fp", bits="w32a32", seed="0", shard="0"))
    assert calls == {Call("forward", 500): 26 * 4, Call("decode", 250): 4}


def test_shards_have_all_images_once() -> None:
    settings = changed("digits", evaluation={"images": 10, "shards": 3, "batch_size": 4})
    shards = [
        work.of(job("sample", settings, method="quest", bits="w4a4", seed="0", shard=str(shard))) for shard in range(3)
    ]
    images = [sum(call.batch * count for call, count in calls.items() if call.kind == "quantized") for calls in shards]
    assert images == [3 * 20, 3 * 20, 4 * 20]


def test_a_backend_has_calls_of_its_own() -> None:
    settings = changed("digits", evaluation={"images": 10, "shards": 1, "batch_size": 5, "backend": "integer"})
    drawn = [
        work.of(job("sample", settings, method=method, bits=bits, seed="0", shard="0"))
        for method, bits in (("quest", "w8a8"), ("fp", "w32a32"))
    ]
    decoded = {Call("decode", 5): 2}
    assert drawn == [{Call("integers", 5): 2 * 20} | decoded, {Call("forward", 5): 2 * 20} | decoded]


def test_learned_rounding_records_once_and_steps_as_often_as_configured() -> None:
    settings = changed("digits", reconstruction={"iterations": 300, "samples": 512})
    calls = work.of(job("reconstruct", settings, grouping="blocks", weight_bits="4", seed="0"))
    # 512 samples over 20 recorded steps are 25 of each.
    assert calls[Call("record", 64)] == 7
    assert calls[Call("record", 500 - 7 * 64)] == 1
    assert calls[Call("rounding", 32)] == 300


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_counted(method: str) -> None:
    calls = work.of(job("finetune", load_dataset("digits"), method=method, bits="w4a4", seed="0"))
    assert calls[Call("build", 1)] == 1
    assert sum(calls.values()) > 1


def test_a_method_that_says_nothing_of_its_cost_is_named_with_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs_of_methods, "python_name", lambda _: "newest")
    with pytest.raises(ConfigError, match=r"newest: its calls are not counted; say in .*/estimate/methods/newest\.py"):
        work.of(job("finetune", load_dataset("digits"), method="newest", bits="w4a4", seed="0"))


def test_kinds_of_calls_belong_to_one_method_each() -> None:
    owners = [kind for method in METHODS for kind in getattr(costs_of_methods.of(method), "KINDS", {})]
    assert sorted(owners) == sorted(costs_of_methods.kinds()) == ["cma", "distil", "full", "tla"]


def test_a_variant_is_counted_as_its_method() -> None:
    settings = load_dataset("digits")
    one, other = (
        work.of(job("finetune", settings, method=name, bits="w4a4", seed="0")) for name in ("quest", "quest+adapters")
    )
    assert one == other


@pytest.mark.parametrize("method", ["nearest", "quest", "efficientdm", "tfmq-dm", "ptqd", "q-diffusion"])
def test_as_many_samples_go_through_the_network_as_are_counted(
    method: str, settings: DatasetSettings, tiny: Model
) -> None:
    own = settings.method(method)
    network = QuantizedNetwork(
        tiny.network, start.recipe(settings, Bits(4, 4), own.sets), tuple(tiny.inputs(1, "cpu")[:2])
    )
    sampler = Sampler(DDIMScheduler(clip_sample=False), settings.sampler)
    x = torch.randn(4, 8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    through = {True: 0, False: 0}  # by whether a whole call was made, or one that ended at a unit
    begun = tiny.network.register_forward_pre_hook(lambda _module, args: _add(through, False, args))
    tiny.network.register_forward_hook(lambda _module, args, _output: _add(through, True, args))
    methods.get(method).quantize(network, Calibration(x, [0, 1, 2, 3], sampler), own, 0)
    begun.remove()
    calls = work.of(job("finetune", settings, method=method, bits="w4a4", seed="0"))

    whole = {"forward": 1, "quantized": 1, "choose": 1, "ranges": 1, "tla": 1, "cma": 1, "distil": 2}
    counted = sum(whole.get(call.kind, 0) * call.batch * count for call, count in calls.items())
    if method in ("q-diffusion", "ptqd"):  # the losses of units are counted as calls of the network, by their cost
        counted -= 2 * 16
        units = len(reconstruction.units(network))
        recorded = sum(call.batch * count for call, count in calls.items() if call.kind == "record_full")
        # One call that ends at each unit, and one for the order of the units each time they are asked for.
        assert through[False] - through[True] == pytest.approx(units * recorded, rel=0.2)
    # Calls with one sample that look at the network: for the order of its units, and for what they need of each other.
    assert through[True] == pytest.approx(counted, abs=3)


def _add(through: dict[bool, int], whole: bool, args: tuple[torch.Tensor, ...]) -> None:
    through[whole] += len(args[0])


def test_fewer_recorded_samples_than_asked_for_are_all_there_is() -> None:
    settings = changed("digits", calibration={"samples_per_step": 4, "steps": 20})
    calls = work.of(job("finetune", settings, method="quest", bits="w4a4", seed="0"))
    assert calls[Call("cma", 4)] == 20 * 5  # a recorded step a set, 4 samples each: one batch


def test_the_teacher_is_asked_again_where_epochs_take_the_samples_in_turn() -> None:
    stage = {"stages": ["cma"], "cma_epochs": 5, "cma_samples": 64}
    forward = []
    for rotated in (True, False):
        settings = changed("shapes", methods={"quest": stage | {"rotated": rotated}})
        calls = work.of(job("finetune", settings, method="quest", bits="w4a4", seed="0"))
        forward.append(sum(call.batch * count for call, count in calls.items() if call.kind == "forward"))
    assert forward == [5 * 64 * 20, 64 * 20]


def test_stages_without_a_network_make_no_calls() -> None:
    assert not work.of(Job("table", ("file",), {"dataset": "digits"}))
