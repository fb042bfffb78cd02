"""Going on from the units before gives what running the network from its start gives, to the last bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from quest.learning import reconstruction
from quest.learning.calibration import Calibration
from quest.learning.reconstruction import Cache, Recorder
from quest.learning.recording import Needs
from quest.quantization.network import QuantizedNetwork

Make = Callable[..., QuantizedNetwork]
ENOUGH, NONE = 4096, 0  # MiB


def contents(cache: Cache) -> list[Tensor]:
    args, named, target = cache.take(torch.arange(cache.samples))
    return [x for x in (*args, *named.values(), target) if isinstance(x, Tensor)]


@pytest.mark.parametrize("grouping", ["blocks", "temporal"])
@pytest.mark.parametrize("weights", [True, False])
def test_every_unit_gets_what_it_would_get_from_the_start(
    monkeypatch: pytest.MonkeyPatch, make_quantized: Make, calibration: Calibration, grouping, weights: bool
) -> None:
    monkeypatch.setattr(reconstruction, "_CHUNK", 5)
    network, data = make_quantized("w3a8", calibrated=False), calibration.samples(2)
    units = reconstruction.units(network, grouping)
    recorder = Recorder(network, units, data, ENOUGH, weights=weights)
    assert recorder.bytes_a_sample > 0
    assert all(walks is not None for walks in recorder._walks)
    with network.quantizing(weights=True, activations=False):
        for number, unit in enumerate(units):
            found = recorder.record(number)
            expected = reconstruction.record(network, unit, data, ENOUGH, weights=weights)
            assert len(contents(found)) == len(contents(expected)) > 1
            assert all(map(torch.equal, contents(found), contents(expected))), unit.name
            for layer in unit.layers.values():  # what is learned of a unit is what later ones see
                with torch.no_grad():
                    layer.weight_parts()[0][0].scale.mul_(1.1)


@pytest.mark.parametrize("budget", [ENOUGH, NONE])
def test_a_unit_is_computed_a_few_times_and_not_for_every_later_one(
    monkeypatch: pytest.MonkeyPatch, make_quantized: Make, calibration: Calibration, budget: int
) -> None:
    network = make_quantized(calibrated=False)
    units = reconstruction.units(network)
    conv = units[2].module
    assert units[2].name == "conv_in"
    recorder = Recorder(network, units, calibration.samples(2), budget, weights=True)
    computed: list[bool] = []
    forward = type(conv).forward

    def counting(layer: nn.Module, *args: Tensor) -> Tensor:
        computed.append(layer is conv)
        return forward(layer, *args)

    monkeypatch.setattr(type(conv), "forward", counting)
    for number in range(len(units)):
        recorder.record(number)
    # Its target, and then once in each precision, or for each later unit.
    assert sum(computed) == 1 + 2 * (1 if budget else len(units) - 3)


def test_learned_rounding_does_not_depend_on_the_budget(
    make_quantized: Make, calibration: Calibration, make_settings: Callable
) -> None:
    results = []
    for cache_mib in (ENOUGH, NONE):
        settings = make_settings(reconstruction={"iterations": 3, "lr": 0.3, "batch_size": 8}).reconstruction
        settings = settings.model_copy(update={"cache_mib": cache_mib})
        progress = reconstruction.Progress()
        losses = reconstruction.reconstruct(make_quantized("w3a8"), calibration, settings, 0, progress)
        results.append((losses, progress.tensors))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(tensor, results[1][1][name]) for name, tensor in results[0][1].items())


class Skipping(nn.Module):
    """a → b → c, whose output meets that of a again."""

    def __init__(self, twice: bool = False):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))
        self.twice = twice

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(a)
        b += 1  # in place
        c = self.c(self.b(b) if self.twice else b)
        return self.d(c + a)


def test_an_output_is_needed_until_the_last_skip_connection() -> None:
    network = Skipping()
    needs = Needs(lambda: network(torch.ones(1, 4)), [network.a, network.b, network.c, network.d])
    assert needs.until == [3, 2, 3, 3]
    assert needs.bytes == 2 * 4 * 4


def test_a_network_that_calls_a_unit_twice_is_run_from_its_start() -> None:
    network = Skipping(twice=True)
    needs = Needs(lambda: network(torch.ones(1, 4)), [network.a, network.b, network.c, network.d])
    assert needs.until == []
