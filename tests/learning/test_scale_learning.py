"""Learned activation scales: only step sizes move, on what the full-precision network does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from network_state import moved, state
from torch import Tensor

from quest.config.dataset import DatasetSettings
from quest.config.methods.q_diffusion import QDiffusionSettings
from quest.learning import reconstruction, scales
from quest.learning.calibration import Calibration
from quest.learning.finetuning import running_ranges
from quest.quantization.network import QuantizedNetwork

Make = Callable[..., QuantizedNetwork]


@pytest.fixture
def own(settings: DatasetSettings) -> QDiffusionSettings:
    """The tiny protocol's."""
    return settings.methods.q_diffusion


def learned(
    network: QuantizedNetwork, calibration: Calibration, settings: QDiffusionSettings, seed: int = 0
) -> tuple[set[str], dict[str, Any]]:
    """What learning scales moved, and its notes."""
    before = state(network)
    notes = scales.learn_scales(network, calibration, settings, seed)
    return moved(before, state(network)), notes


def test_only_scales_of_activations_move(
    make_quantized: Make, calibration: Calibration, own: QDiffusionSettings
) -> None:
    network = make_quantized(sets=1)
    found, _ = learned(network, calibration, own)
    expected = {f"{name}.scale" for name in network.sites()}
    assert found <= expected, "weights, their grids and all zero points keep every bit"
    assert len(found) >= 0.9 * len(expected), "a scale may happen to get no gradient"
    for operand in ("q", "k", "v", "probabilities"):
        assert f"mid_block.attentions.0.processor.{operand}.scale" in found
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(layer._frozen is None for layer in network.layers().values())


def test_both_halves_of_a_split_shortcut_are_learned(
    make_quantized: Make, calibration: Calibration, own: QDiffusionSettings
) -> None:
    found, _ = learned(make_quantized(sets=1, split_shortcuts=True), calibration, own)
    shortcut = "up_blocks.1.resnets.0.conv_shortcut.input_quantizer"
    assert {f"{shortcut}.first.scale", f"{shortcut}.second.scale"} <= found


def test_fine_probabilities_are_left_alone(
    make_quantized: Make, calibration: Calibration, own: QDiffusionSettings
) -> None:
    network = make_quantized(sets=1, softmax_bits=16)
    found, _ = learned(network, calibration, own)
    assert {name for name, site in network.sites().items() if site.grid.bits == 16}
    assert not any("probabilities" in name for name in found)


@pytest.mark.parametrize("sets", [1, 2])
def test_losses_fall(
    make_quantized: Make, calibration: Calibration, make_settings: Callable[..., DatasetSettings], sets: int
) -> None:
    changes = {"iterations": 60 * sets, "batch_size": 8, "lr": 2e-2, "samples": 32, "sets": sets}
    settings = make_settings(methods={"q_diffusion": changes}).methods.q_diffusion
    network = make_quantized(sets=sets)
    _, notes = learned(network, calibration, settings)
    units = [unit.name for unit in reconstruction.units(network)]
    assert list(notes["loss"]) == units
    before, after = (sum(loss[key] for loss in notes["loss"].values()) for key in ("calibrated", "learned"))
    assert after < 0.95 * before
    assert notes["samples"] == {"recorded": len(units) * 32, "trained": len(units) * 60 * sets * 8}
    name = "mid_block.resnets.0.conv1.input_quantizer"
    fresh = make_quantized(sets=sets).sites()[name].scale
    for index, scale in enumerate(network.sites()[name].scale):
        assert not torch.equal(scale, fresh[index]), "every set is learned"


def test_loss_is_the_mean_over_all_samples_of_the_error_to_the_power_of_2_4(
    make_quantized: Make, calibration: Calibration, own: QDiffusionSettings
) -> None:
    network = make_quantized(sets=2)
    data = calibration.samples(4)
    outputs: dict[bool, Tensor] = {}
    layer = network.layers()["conv_in"]
    with torch.no_grad():
        for activations in (False, True):
            with network.quantizing(weights=activations, activations=activations):
                network.set_step(0)
                found = [layer(data.x[:8])]
                network.set_step(2)
                found.append(layer(data.x[8:]))
            outputs[activations] = torch.cat(found)
    expected = (outputs[True] - outputs[False]).abs().pow(2.4).sum(1).mean()
    _, notes = learned(network, calibration, own)
    assert notes["loss"]["conv_in"]["calibrated"] == pytest.approx(expected.item(), rel=1e-5)


def test_inputs_and_targets_are_those_of_full_precision(make_quantized: Make, calibration: Calibration) -> None:
    network = make_quantized("w2a2", sets=1)
    data = calibration.samples(2)
    unit = {unit.name: unit for unit in reconstruction.units(network)}["mid_block.resnets.0"]
    seen: list[Any] = []
    handle = unit.module.register_forward_hook(lambda _m, args, output: seen.extend([args[0], output]))
    with torch.no_grad(), network.quantizing(weights=False, activations=False):
        network(data.x, data.timesteps)
    handle.remove()
    args, _, target = reconstruction.record(network, unit, data, 1000, weights=False).take(torch.arange(len(data)))
    assert torch.equal(args[0], seen[0])
    assert torch.equal(target, seen[1])


def test_learning_rate_falls_along_a_cosine(
    monkeypatch: pytest.MonkeyPatch, make_quantized: Make, calibration: Calibration, own: QDiffusionSettings
) -> None:
    rates: list[float] = []
    step = torch.optim.Adam.step

    def spy(optimizer: torch.optim.Adam, *rest: Any) -> Any:
        rates.append(float(optimizer.param_groups[0]["lr"]))
        return step(optimizer, *rest)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    learned(make_quantized(sets=1), calibration, own)
    assert own.iterations == 4
    assert rates[:4] == pytest.approx([1e-2 * share for share in (1, 0.853553, 0.5, 0.146447)], rel=1e-5)


def test_scales_stay_positive(make_quantized: Make, calibration: Calibration, own: QDiffusionSettings) -> None:
    network = make_quantized(sets=1)
    learned(network, calibration, own.model_copy(update={"lr": 100.0}))
    assert all(bool((site.scale >= 1e-8).all()) for site in network.sites().values())


def test_running_range_of_two_batches(make_quantized: Make) -> None:
    """0.95 of what was, 0.05 of the new, the zero point along with it; then the batch is quantized by that."""
    network = make_quantized("w8a8", sets=2)
    site = network.sites()["conv_in.input_quantizer"]
    other = site.scale[0].clone()
    network.set_step(2)
    with torch.no_grad(), running_ranges(network, scales.MOMENTUM):
        site(torch.tensor([-1.0, 2.0]).view(1, 1, 1, 2))
        assert site.scale[1].item() == pytest.approx(3 / 255)
        found = site(torch.tensor([-2.0, 4.0]).view(1, 1, 1, 2))
    assert site.scale[1].item() == pytest.approx(0.0123529, rel=1e-5)
    assert site.zero_point[1].item() == 85
    torch.testing.assert_close(found.flatten(), torch.tensor([-85.0, 170.0]) * 0.0123529, rtol=1e-5, atol=0)
    assert torch.equal(site.scale[0], other)


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
def test_running_ranges_see_all_samples(make_quantized: Make, calibration: Calibration, bits: str) -> None:
    network = make_quantized(bits, sets=2)
    scales.follow_ranges(network, calibration, 0)
    site = network.sites()["conv_in.input_quantizer"]
    for index, steps in enumerate(([0, 1], [2, 3])):  # one batch holds all 16 samples of a set
        x = calibration.x[steps]
        width = x.max().clamp(min=0) - x.min().clamp(max=0)
        assert site.scale[index].item() == pytest.approx(width.item() / 255, rel=1e-5)
    assert not any(site._forward_pre_hooks for site in network.sites().values())
