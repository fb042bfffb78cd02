"""Finetuning: local losses inside the graph, nothing else moves, and the teacher stays what it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from network_state import moved, state
from torch import Tensor

from quest import graphs
from quest.learning import finetuning, turns
from quest.learning.calibration import Calibration
from quest.learning.finetuning import Stage, calibrate_activations, finetune
from quest.quantization.network import QuantizedNetwork
from quest.quantization.roles import Role

Make = Callable[..., QuantizedNetwork]
ATTENTION = (Role.ATTENTION_Q, Role.ATTENTION_K, Role.ATTENTION_V)


def make_stage(network: QuantizedNetwork, roles: Iterable[Role] = (Role.TIME_PROJECTION,), **changes) -> Stage:
    layers = {name: layer for name, layer in network.layers().items() if layer.role in roles}
    sites = [network.sites()[f"{name}.input_quantizer"] for name in layers]
    stage = Stage("tla", layers, sites, epochs=2, samples=4, batch_size=2, weight_lr=1e-3, scale_lr=1e-3)
    return replace(stage, **changes)


def test_each_set_is_calibrated_on_the_samples_of_its_steps(make_quantized: Make, calibration: Calibration) -> None:
    network = make_quantized(sets=2, calibrated=False, activation_search="max")
    calibrate_activations(network, calibration)
    site = network.sites()["conv_in.input_quantizer"]
    assert all(bool(each.calibrated.all()) for each in network.sites().values())
    for index, steps in enumerate(([0, 1], [2, 3])):
        x = calibration.x[steps]
        width = x.max().clamp(min=0) - x.min().clamp(max=0)
        torch.testing.assert_close(site.scale[index].item(), (width / 255).item())
    assert not any(each.calibrating for each in network.sites().values())


def test_later_layers_are_calibrated_on_quantized_inputs(make_quantized: Make, calibration: Calibration) -> None:
    network = make_quantized("w2a2", sets=1, calibrated=False, activation_search="max")
    calibrate_activations(network, calibration)
    name = "down_blocks.0.resnets.0.conv2"
    seen: list[Tensor] = []
    network.layers()[name].register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    data = calibration.samples(8)
    network.set_step(0)
    with torch.no_grad():
        network(data.x, data.timesteps)
        with network.quantizing(weights=False, activations=False):
            network(data.x, data.timesteps)
    widths = [(x.amax((0, 2, 3)).clamp(min=0) - x.amin((0, 2, 3)).clamp(max=0)) / 3 for x in seen]
    scale = network.sites()[f"{name}.input_quantizer"].scale.flatten()
    torch.testing.assert_close(scale, widths[0])
    assert not torch.allclose(scale, widths[1], rtol=0.01)


def test_more_sets_than_recorded_steps(make_quantized: Make, calibration: Calibration) -> None:
    half = replace(calibration, x=calibration.x[:2], steps=[0, 2])
    with pytest.raises(ValueError, match=r"no calibration sample for sampling steps 1 to 1.* fewer sets than 4"):
        calibrate_activations(make_quantized(sets=4, calibrated=False), half)


@pytest.mark.parametrize("roles", [(Role.TIME_PROJECTION,), ATTENTION])
def test_local_losses_carry_gradient(make_quantized: Make, calibration: Calibration, roles: tuple[Role, ...]) -> None:
    """In the released code most of them are constants, so that the global loss trains alone."""
    network = make_quantized()
    stage = make_stage(network, roles, global_loss=False)
    targets = stage.record(network, calibration)
    data = calibration.samples(4)
    weights = stage.weights()
    assert len(weights) == 2 * len(stage.layers)
    for parameter in weights:
        parameter.requires_grad_(True)
    with finetuning.outputs_of(stage.layers) as outputs:
        finetuning.predict(network, data, torch.tensor([0, 1]))
    assert set(outputs) == set(stage.layers)
    assert all(output.requires_grad and output.grad_fn is not None for output in outputs.values())
    _, of_layers, of_network = targets.take(torch.tensor([0, 1]))
    assert all(not target.requires_grad for target in [of_network, *of_layers.values()])
    with turns.trained(stage.sites) as scales:
        batch = torch.tensor([0, 1])
        losses = finetuning._losses(network, data.inputs(batch), stage, targets, batch)
        assert set(losses) == {"local"}
        losses["local"].backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in weights)
        assert all(each.scale.grad is not None for each in scales)


def test_each_layer_is_matched_on_its_own(make_quantized: Make, calibration: Calibration) -> None:
    network = make_quantized()
    stage = make_stage(network, ATTENTION)
    targets = stage.record(network, calibration)
    data, batch = calibration.samples(4), torch.tensor([3, 5])
    with torch.no_grad():
        losses = finetuning._losses(network, data.inputs(batch), stage, targets, batch)
        with finetuning.outputs_of(stage.layers) as outputs:
            noise = finetuning.predict(network, data, batch)
        _, of_layers, of_network = targets.take(batch)
        errors = [(outputs[name] - of_layers[name]).square().mean() for name in stage.layers]
    torch.testing.assert_close(losses["local"], torch.stack(errors).mean())
    torch.testing.assert_close(losses["global"], (noise - of_network).square().mean())


def test_targets_are_those_of_full_precision(make_quantized: Make, calibration: Calibration) -> None:
    network = make_quantized()
    stage = make_stage(network)
    targets = stage.record(network, calibration)
    data = calibration.samples(4)
    with torch.no_grad(), network.quantizing(weights=False, activations=False):
        with finetuning.outputs_of(stage.layers) as outputs:
            noise = network(data.x, data.timesteps).sample
        _, of_layers, of_network = targets.take(torch.arange(len(data)))
        torch.testing.assert_close(of_network, noise)
        assert set(of_layers) == set(outputs)
        for name, output in outputs.items():
            torch.testing.assert_close(of_layers[name], output)


def test_epochs_take_the_samples_in_turn(make_quantized: Make, calibration: Calibration) -> None:
    stage = make_stage(make_quantized(), samples=3)
    assert len(calibration) == 8
    assert [stage.samples_of(calibration, epoch)[:3].tolist() for epoch in range(3)] == [
        [0, 1, 2],
        [3, 4, 5],
        [0, 6, 7],
    ]
    steps = calibration.samples(8).steps
    assert all(steps[stage.samples_of(calibration, epoch)].bincount().tolist() == [3] * 4 for epoch in range(3))
    everything = replace(stage, samples=100)
    assert all(torch.equal(everything.samples_of(calibration, epoch), torch.arange(32)) for epoch in range(3))


def test_each_epoch_is_taught_by_the_network_before_any_training(
    make_quantized: Make, calibration: Calibration
) -> None:
    """Two epochs of two samples a step are one epoch of the first two, then one of the next two, with full precision's
    outputs on each."""
    network = make_quantized()
    teacher = copy.deepcopy(network)
    stage = make_stage(network, ATTENTION, samples=2)
    targets = stage.record(teacher, calibration)
    seen: list[Tensor] = []
    hook = network.network.register_forward_pre_hook(lambda _m, args: seen.append(args[0].clone()))
    finetune(network, calibration, stage, targets, 0, teacher=teacher)
    hook.remove()
    shown = torch.cat(seen)
    for epoch, chosen in enumerate(([0, 1], [2, 3])):
        wanted = calibration.x[:, chosen].flatten(0, 1)
        part = shown[epoch * len(wanted) : (epoch + 1) * len(wanted)]
        assert all(any(torch.equal(x, y) for y in part) for x in wanted)
    data, last = calibration.samples(8), stage.samples_of(calibration, 1)
    with torch.no_grad(), teacher.quantizing(weights=False, activations=False):
        noise = teacher(data.x[last], data.timesteps[last]).sample
    torch.testing.assert_close(targets.take(torch.arange(len(last)))[2], noise)


def test_only_what_is_trained_moves(make_quantized: Make, calibration: Calibration) -> None:
    network = make_quantized()
    stage = make_stage(network)
    targets = stage.record(network, calibration)
    before = state(network)
    finetune(network, calibration, stage, targets, 0)
    expected = {f"{name}.{part}" for name in stage.layers for part in ("weight", "bias", "input_quantizer.scale")}
    assert moved(before, state(network)) == expected
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_gradients_are_taken_for_nothing_else(
    monkeypatch: pytest.MonkeyPatch, make_quantized: Make, calibration: Calibration
) -> None:
    network = make_quantized()
    stage = make_stage(network)
    targets = stage.record(network, calibration)
    trained = {id(parameter) for parameter in stage.weights()}
    losses_of = finetuning._losses

    def check(*arguments) -> dict[str, Tensor]:
        assert {id(p) for p in network.parameters() if p.requires_grad} == trained
        assert not any(module.training for module in network.network.modules() if type(module).__name__ == "Dropout")
        return losses_of(*arguments)

    monkeypatch.setattr(finetuning, "_losses", check)
    finetune(network, calibration, stage, targets, 0)


def test_loss_falls(make_quantized: Make, calibration: Calibration) -> None:
    """Weights that were disturbed by half their spread find most of their way back."""
    network = make_quantized("w8a8")
    changes = {"epochs": 16, "samples": 8, "batch_size": 8, "weight_lr": 1e-2, "scale_lr": 1e-4}
    stage = make_stage(network, ATTENTION, **changes)
    targets = stage.record(network, calibration)
    generator = torch.Generator().manual_seed(1)
    for layer in stage.layers.values():
        noise = torch.randn(layer.weight.shape, generator=generator)
        layer.weight.data.add_(0.5 * layer.weight.std() * noise)
    history = finetune(network, calibration, stage, targets, 0)
    assert len(history) == 16
    for term in ("local", "global"):
        assert history[-1][term] < 0.5 * history[0][term]


def test_deterministic_for_a_seed(make_quantized: Make, calibration: Calibration) -> None:
    results = []
    for seed in (0, 0, 1):
        network = make_quantized()
        stage = make_stage(network)
        history = finetune(network, calibration, stage, stage.record(network, calibration), seed)
        results.append((history, state(network)))
    assert results[0][0] == results[1][0] != results[2][0]
    assert all(torch.equal(results[0][1][name], tensor) for name, tensor in results[1][1].items())


def test_scales_stay_positive(make_quantized: Make, calibration: Calibration) -> None:
    network = make_quantized()
    stage = make_stage(network, scale_lr=100.0)
    finetune(network, calibration, stage, stage.record(network, calibration), 0)
    for site in stage.sites:
        assert bool((site.scale > 0).all())
        assert bool(torch.isfinite(site.scale).all())


def test_batches_are_of_one_set_and_cover_all_samples(
    monkeypatch: pytest.MonkeyPatch, make_quantized: Make, calibration: Calibration
) -> None:
    network = make_quantized(sets=2)
    stage = make_stage(network, epochs=1, samples=5, batch_size=3)
    targets = stage.record(network, calibration)
    batches: list[list[int]] = []
    losses_of = finetuning._losses

    steps = calibration.samples(5).steps

    def spy(network, told, stage, targets, batch) -> dict[str, Tensor]:
        batches.append(batch.tolist())
        assert len(set((steps[batch] // 2).tolist())) == 1
        return losses_of(network, told, stage, targets, batch)

    monkeypatch.setattr(finetuning, "_losses", spy)
    finetune(network, calibration, stage, targets, 0)
    assert sorted(position for batch in batches for position in batch) == list(range(20))
    order = [batch[0] // 10 for batch in batches]
    assert order != sorted(order), "sets are interleaved"


def test_a_teacher_in_host_memory_teaches_the_same(make_quantized: Make, calibration: Calibration) -> None:
    results = []
    for budget in (2**40, 0):
        network = make_quantized()
        stage = make_stage(network, ATTENTION)
        targets = stage.record(network, calibration, budget)
        assert (targets.on_device, targets.device_bytes == 0, targets.host_bytes > 0) == (
            budget > 0,
            *[budget == 0] * 2,
        )
        results.append((finetune(network, calibration, stage, targets, 0), state(network)))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(results[0][1][name], tensor) for name, tensor in results[1][1].items())


def test_a_teacher_in_host_memory_is_not_recorded_as_a_graph(
    monkeypatch: pytest.MonkeyPatch, make_quantized: Make, calibration: Calibration
) -> None:
    asked: list[bool] = []

    def spy(step: Callable, recordable: bool = True, **named) -> finetuning.Replayed:
        asked.append(recordable)
        return graphs.Replayed(step, recordable, **named)

    monkeypatch.setattr(finetuning, "Replayed", spy)
    network = make_quantized()
    stage = make_stage(network)
    for budget in (2**40, 0):
        finetune(network, calibration, stage, stage.record(network, calibration, budget), 0)
    assert asked == [True, False]


def test_both_losses_off(make_quantized: Make) -> None:
    with pytest.raises(ValueError, match="tla: both losses are off; switch on local_loss, global_loss or both"):
        make_stage(make_quantized(calibrated=False), local_loss=False, global_loss=False)


def test_global_loss_alone(make_quantized: Make, calibration: Calibration) -> None:
    network = make_quantized()
    stage = make_stage(network, local_loss=False)
    targets = stage.record(network, calibration)
    assert targets.take(torch.arange(2))[1] == {}, "no layer outputs are kept"
    before = state(network)
    finetune(network, calibration, stage, targets, 0)
    assert moved(before, state(network))


GOOD, BAD = torch.ones(1, 1, 8, 8), torch.full((1, 1, 8, 8), float("nan"))


@pytest.mark.parametrize("batches", [(BAD,), (GOOD, BAD), (GOOD, BAD, GOOD)])
def test_running_range_of_what_is_not_finite(make_quantized: Make, batches: tuple[Tensor, ...]) -> None:
    """In the first batch, and in a later one, whose numbers a moving range would keep for good."""
    network = make_quantized()
    network.set_step(0)
    site = network.sites()["conv_in.input_quantizer"]

    def follow() -> None:
        with torch.no_grad(), finetuning.running_ranges(network, 0.9):
            for batch in batches:
                site(batch)

    with pytest.raises(ValueError, match=r"^activation conv_in\.input_quantizer: .*NaN"):
        follow()
    assert not site._forward_pre_hooks


@pytest.mark.parametrize("granularity", ["offsets", "multiples"])
def test_running_ranges_of_channels_that_share_a_scale(make_quantized: Make, granularity: str) -> None:
    """What each channel has seen lies on the grid, to a step of that channel."""
    network = make_quantized(activation_granularity={"4": granularity})
    network.set_step(0)
    site = next(s for s in network.sites().values() if s.grid.bits == 4 and s.zero_point.ndim == 5)
    channels = site.zero_point.shape[2]
    width = torch.logspace(0, 0.8, channels).view(1, -1, 1, 1)
    batches = [torch.rand(2, channels, 8, 8) * width - 0.3 * width for _ in range(3)]
    with torch.no_grad(), finetuning.running_ranges(network, 0.5):
        for batch in batches:
            site(batch)
    extremes = torch.stack([torch.stack([b.amin((0, 2, 3)), b.amax((0, 2, 3))]) for b in batches])
    running = extremes[0]
    for each in extremes[1:]:
        running = 0.5 * running + 0.5 * each
    ends = running.view(2, channels, 1, 1)
    step = site.scale[0] * (1 if site.multiple is None else site.multiple[0])
    assert site.scale[0].numel() == 1
    assert bool(((site(ends) - ends).abs() <= step).all())


def test_weights_that_are_not_trained_are_quantized_once(
    make_quantized: Make, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, calls = [], []
    for freezing in (True, False):
        network = make_quantized()
        stage = make_stage(network, ATTENTION)
        layers = network.layers()
        targets = stage.record(network, calibration)
        if not freezing:
            monkeypatch.setattr(network, "frozen", lambda but: nullcontext())
        counts = dict.fromkeys(layers, 0)

        def count(name: str, counts: dict[str, int] = counts) -> Callable[..., None]:
            return lambda *_: counts.__setitem__(name, counts[name] + 1)

        for name, layer in layers.items():
            layer.weight_quantizer.register_forward_pre_hook(count(name))
        history = finetune(network, calibration, stage, targets, 0)
        results.append((state(network), history))
        calls.append({name: counts[name] for name in layers if name not in stage.layers})
        steps = 2 * 4 * 4 // 2
        assert all(counts[name] == steps for name in stage.layers)
    assert set(calls[0].values()) == {1}
    assert set(calls[1].values()) == {steps}
    assert results[0][1] == results[1][1]
    assert all(torch.equal(tensor, results[1][0][name]) for name, tensor in results[0][0].items())
