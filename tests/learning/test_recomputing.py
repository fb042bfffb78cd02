"""Training within a limit of memory: the same numbers, fewer bytes, and a clear word where it cannot be."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from network_state import state
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from quest import architectures, device
from quest.config.dataset import DatasetSettings
from quest.device import OutOfMemory, limited
from quest.learning import recomputing
from quest.learning.calibration import Calibration
from quest.learning.recomputing import Kept, Limited
from quest.methods import Outcome, efficientdm, quest, traq
from quest.quantization.network import QuantizedNetwork

Make = Callable[..., QuantizedNetwork]
MakeSettings = Callable[..., DatasetSettings]
MIB = 2**-10  # in GiB
NOTHING = 1e-9  # GiB


@pytest.fixture(autouse=True)
def nothing_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit is for what a step takes alone, whatever this process holds."""
    monkeypatch.setattr(recomputing, "held", lambda _device: 0.0)
    monkeypatch.delenv(device.MEMORY, raising=False)


@pytest.fixture
def recomputing_everything(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A limit makes every block that keeps anything be computed again; returns how many, of each size of batch."""
    counts: list[int] = []

    def every(kept: Kept, _room: float) -> list[str]:
        counts.append(sum(map(bool, kept.inside.values())))
        return list(kept.inside)

    monkeypatch.setattr(Kept, "blocks_for", every)
    return counts


@contextmanager
def calls_of(network: QuantizedNetwork) -> Iterator[list[str]]:
    """Within, the names of layers are noted whenever they compute."""
    found: list[str] = []
    handles = [
        layer.register_forward_pre_hook(lambda *_, name=name: found.append(name))
        for name, layer in network.layers().items()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def by_quest(stages: list[str], **changes: Any) -> Callable[..., Outcome]:
    def run(network: QuantizedNetwork, calibration: Calibration, make_settings: MakeSettings) -> Outcome:
        settings = make_settings(methods={"quest": {"stages": stages, **changes}}).methods.quest
        return quest.quantize(network, calibration, settings, 0)

    return run


def by_efficientdm(network: QuantizedNetwork, calibration: Calibration, make_settings: MakeSettings) -> Outcome:
    return efficientdm.quantize(network, calibration, make_settings().methods.efficientdm, 0)


def by_traq(network: QuantizedNetwork, calibration: Calibration, make_settings: MakeSettings) -> Outcome:
    return traq.quantize(network, calibration, make_settings().methods.traq, 0)


METHODS = {
    "tla and cma": (by_quest(["tla", "cma"]), 2),
    "full": (by_quest(["full"]), 2),
    "adapters": (by_quest(["cma"], adapter_rank=2), 2),
    "efficientdm": (by_efficientdm, 4),
    "traq": (by_traq, 4),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_same_weights(
    make_quantized: Make,
    calibration: Calibration,
    make_settings: MakeSettings,
    recomputing_everything: list[int],
    name: str,
) -> None:
    run, sets = METHODS[name]
    found = []
    for gib in (None, NOTHING):
        network = make_quantized("w4a4", calibrated=False, sets=sets)
        before = state(network)
        with limited(gib), calls_of(network) as calls:
            notes = run(network, calibration, make_settings).notes
        after = state(network)
        assert any(not torch.equal(before[key], after[key]) for key in before), "something was learned"
        assert bool(recomputing_everything) == (gib is not None)
        found.append((after, notes, len(calls)))
    (without, told, few), (within, same, more) = found
    assert told == same, "every loss term of every epoch"
    assert without.keys() == within.keys()
    assert [key for key in without if not torch.equal(without[key], within[key])] == []
    measuring = len(recomputing_everything) * len(network.layers())
    assert more > few + measuring, "layers were computed again"


def test_a_limit_by_itself_chooses_blocks(
    make_quantized: Make, calibration: Calibration, make_settings: MakeSettings
) -> None:
    """As above, with blocks chosen as a user's limit chooses them: some, but not all."""
    settings = make_settings().methods.traq
    found, chosen = [], []

    class Spy(Limited):
        def _choose(self, inputs: tuple[Tensor, ...]) -> Any:
            chosen.append(super()._choose(inputs))
            return chosen[-1]

    for gib in (math.inf, 1.5 * MIB):
        network = make_quantized(sets=4)
        with limited(gib), pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(traq, "Limited", Spy)
            traq.quantize(network, calibration, settings, 0)
        found.append(state(network))
    assert len(chosen) == 1, "a batch of one size is measured once"
    assert 0 < len(chosen[0]) < len(network.blocks())
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_without_a_limit_nothing_is_done(make_quantized: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("measure", "recomputed"):
        monkeypatch.setattr(recomputing, name, lambda *_: pytest.fail("this costs time"))
    assert Limited(make_quantized(), lambda x: x + 1, "batch_size")(torch.zeros(2)).tolist() == [1, 1]


@pytest.fixture
def trained(make_quantized: Make, calibration: Calibration) -> Trained:
    """The tiny network with every weight to be trained, at its first step."""
    return Trained(make_quantized(), calibration)


class Trained:
    """A network whose weights want gradients, and passes through it."""

    def __init__(self, network: QuantizedNetwork, calibration: Calibration):
        self.network, self.data = network, calibration.samples(8)
        self.weights = [layer.weight for layer in network.layers().values()]
        for weight in self.weights:
            weight.requires_grad_(True)
        network.set_step(0)

    def loss(self, batch: Tensor) -> Tensor:
        return architectures.predict(self.network, self.data.inputs(batch)).square().sum()

    def gradients(self) -> list[Tensor]:
        """Those that a backward pass left, taken away."""
        found = [weight.grad for weight in self.weights]
        for weight in self.weights:
            weight.grad = None
        assert all(each is not None for each in found)
        return found  # type: ignore[return-value]

    def measured(self, batch: Tensor) -> Kept:
        return recomputing.measure(self.network, lambda: self.loss(batch))


@pytest.mark.parametrize("samples", [1, 4])
def test_bytes_kept_fall_as_predicted(trained: Trained, samples: int) -> None:
    """Counted apart from what measures them: what autograd asks to be kept, all of it held."""
    batch, here = torch.arange(samples), {x.untyped_storage().data_ptr() for x in trained.network.state_dict().values()}
    kept = trained.measured(batch)
    every = list(kept.inside)
    for again in ([], every[:1], every[3:9], every):
        found: dict[int, Tensor] = {}

        def hold(x: Tensor, found: dict[int, Tensor] = found) -> Tensor:
            found[x.untyped_storage().data_ptr()] = x
            return x

        with saved_tensors_hooks(hold, lambda x: x), recomputing.recomputed(trained.network, again):
            loss = trained.loss(batch)
        counted = sum(x.untyped_storage().nbytes() for place, x in found.items() if place not in here)
        of_steps = 8 * len(again)  # which step it was, of each block
        assert counted - of_steps <= kept.bytes(again) <= counted
        del loss
    assert kept.bytes(every) < 0.5 * kept.bytes()


def test_fewest_blocks_first_those_that_save_most(trained: Trained) -> None:
    kept = trained.measured(torch.arange(4))
    assert kept.blocks_for(kept.peak()) == []
    room = 0.9 * kept.peak()
    few = kept.blocks_for(room) or ()
    assert 0 < len(few) < len(kept.inside)
    assert kept.peak(few) <= room < kept.peak(few[:-1])
    alone = {name: kept.bytes([name]) for name in kept.inside}
    assert max(alone[name] for name in few) <= min(alone[name] for name in alone if name not in few)
    most = kept.blocks_for(kept.least())
    assert most is not None
    assert kept.peak(most) == kept.least() < room
    assert kept.blocks_for(kept.least() - 1) is None


def test_what_blocks_share_counts_once() -> None:
    """a and b keep what stands between them, which is an input of b; c keeps little beside its inputs."""
    kept = Kept(
        size={0: 8, 1: 100, 2: 50, 3: 40, 4: 1},
        inside={"a": {1, 2}, "b": {2, 3}, "c": {3, 4}},
        given={"a": {0}, "b": {2}, "c": {3}},
        outside={4},
    )
    assert kept.bytes() == 191
    assert kept.bytes(["a"]) == 8 + 50 + 40 + 1, "b keeps their common storage all the same"
    assert kept.bytes(["a", "b"]) == 8 + 50 + 40 + 1, "and c what b gives it"
    assert kept.bytes(["a", "b", "c"]) == 8 + 50 + 40 + 1
    assert kept.peak(["a"]) == 99 + 100 + 150, "kept, computed again, and gradients"
    assert kept.least() == 191 + 150, "computing a again saves less than it takes"
    assert kept.blocks_for(340) is None


def test_a_large_limit_computes_nothing_again(trained: Trained) -> None:
    with calls_of(trained.network) as calls:
        with limited(1.0):
            loss = Limited(trained.network, trained.loss, "batch_size")
        loss(torch.arange(2)).backward()
        assert len(calls) == 2 * len(trained.network.layers()), "measured, and computed"
        loss(torch.arange(2)).backward()
        assert len(calls) == 3 * len(trained.network.layers()), "measured once"


def test_too_small_a_limit(trained: Trained) -> None:
    """What the message says is enough is enough, and no less."""
    of_four, of_one = (trained.measured(torch.arange(n)).least() for n in (4, 1))
    moments = 3 * sum(weight.numel() * 4 for weight in trained.weights)

    def called(size: float, samples: int) -> None:
        with limited(size / 2**30):
            Limited(trained.network, trained.loss, "methods.traq.batch_size")(torch.arange(samples))

    called(moments + of_four + 1, 4)
    between = moments + of_one + 0.7 * (of_four - of_one)
    told = (
        rf"^methods.traq.batch_size: a batch of 4 takes {recomputing._gib(moments + of_four)} GiB even where every "
        rf"block is computed again, and the limit \(--memory or QUEST_MEMORY_GIB\) is {between / 2**30:.4g}; give that "
        "much, or set methods.traq.batch_size to 3, which fits$"
    )
    with pytest.raises(OutOfMemory, match=told):
        called(between, 4)
    called(between, 3)
    with pytest.raises(OutOfMemory, match=r"; a single sample takes 0\.01$"):
        called(moments + of_one - 1, 4)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("what", ["each", "set", "quantizing"])
def test_the_backward_pass_is_at_the_step_of_the_forward_pass(trained: Trained, samples: int, what: str) -> None:
    """It may come when the network is told something else: the next step, or nothing of single samples any more."""
    network, batch = trained.network, torch.arange(samples)
    for site in network.sites().values():  # sets that differ by much
        site.scale.data[1] *= 1.7
    found = []
    for again in ([], list(network.blocks())):
        network.set_step(0)
        with recomputing.recomputed(network, again):
            if what == "each":
                with network.step.each(torch.full((samples,), 3)):
                    loss = trained.loss(batch)
            elif what == "set":
                network.set_step(3)
                loss = trained.loss(batch)
                network.set_step(0)
            else:
                with network.quantizing(weights=False, activations=True):
                    loss = trained.loss(batch)
        loss.backward()
        found.append(trained.gradients())
        assert (network.step.index, network.step.position.tolist()) == (0, [0])
        assert network.mode == (True, True, 0)
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_two_backward_passes(trained: Trained) -> None:
    with recomputing.recomputed(trained.network, list(trained.network.blocks())):
        loss = trained.loss(torch.arange(2))
    loss.backward(retain_graph=True)
    first = trained.gradients()
    loss.backward()
    assert all(torch.equal(*pair) for pair in zip(first, trained.gradients(), strict=True))


def test_blocks_are_left_as_they_were(trained: Trained) -> None:
    every = trained.network.blocks()
    with pytest.raises(IndexError), recomputing.recomputed(trained.network, list(every)):
        trained.loss(torch.tensor([1_000]))
    assert not any("forward" in vars(block) for block in every.values())


def test_nothing_waits_for_the_garbage_collector(trained: Trained) -> None:
    """While a graph is recorded there is none: what waited for it would be memory that each step holds."""
    seen: list[weakref.ref[Any]] = []
    site = trained.network.sites()["mid_block.resnets.0.conv2.input_quantizer"]
    handle = site.register_forward_hook(lambda _module, _inputs, output: seen.append(weakref.ref(output)))
    gc.collect()
    gc.disable()
    try:
        with recomputing.recomputed(trained.network, list(trained.network.blocks())):
            loss = trained.loss(torch.arange(2))
        assert [each() for each in seen] == [None], "forgotten"
        loss.backward()
        del loss
        assert [each() for each in seen] == [None, None], "used"
    finally:
        gc.enable()
        handle.remove()
