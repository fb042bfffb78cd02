"""QuEST: what each stage trains, in which order, and what stays frozen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from network_state import moved, state
from torch import Tensor

from quest.config.dataset import DatasetSettings
from quest.diffusion import denoiser as denoisers
from quest.learning import calibration as calibrations
from quest.learning.calibration import Calibration
from quest.learning.finetuning import Stage
from quest.methods import nearest, quest
from quest.quantization.network import QuantizedNetwork
from quest.quantization.roles import Role
from quest.quantization.rounding import Fixed, Nearest

Make = Callable[..., QuantizedNetwork]
TIME = (Role.TIME_MLP, Role.TIME_PROJECTION)


def rounded(network: QuantizedNetwork) -> QuantizedNetwork:
    """``network`` as QuEST finds it: each weight's rounding decided."""
    for layer in network.layers().values():
        for quantizer, weight in layer.weight_parts():
            ratio = quantizer.ratio(weight)
            quantizer.rounding = Fixed(ratio - ratio.floor() >= 0.5)
    return network


class Trace:
    """State of the network around each stage of QuEST, recorded while `quantize` runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.before: dict[str, dict[str, Tensor]] = {}
        self.after: dict[str, dict[str, Tensor]] = {}
        self.taught: dict[str, dict[str, Tensor]] = {}  # the teacher, whenever it is asked
        self.events: list[str] = []
        finetune, teach = quest.finetune, Stage.teach

        def spy(network: QuantizedNetwork, calibration: Calibration, stage: Stage, *rest: Any) -> Any:
            self.events.append(f"train {stage.name}")
            self.before[stage.name] = state(network)
            history = finetune(network, calibration, stage, *rest)
            self.after[stage.name] = state(network)
            return history

        def asked(stage: Stage, teacher: QuantizedNetwork, calibration: Calibration, epoch: int, *rest: Any) -> None:
            self.events.append(f"teach {stage.name} {epoch}")
            self.taught[stage.name] = state(teacher)
            teach(stage, teacher, calibration, epoch, *rest)

        monkeypatch.setattr(quest, "finetune", spy)
        monkeypatch.setattr(Stage, "teach", asked)

    def moved(self, stage: str) -> set[str]:
        return moved(self.before[stage], self.after[stage])


@pytest.fixture(scope="module")
def network(make_quantized: Make) -> QuantizedNetwork:
    """The tiny network before, and with ``trace`` after, QuEST."""
    return rounded(make_quantized("w4a4", calibrated=False))


@pytest.fixture(scope="module")
def trace(network: QuantizedNetwork, calibration_file: Path, model_file: Path, settings: DatasetSettings) -> Trace:
    """QuEST on the tiny network, done."""
    calibration = calibrations.load(calibration_file, denoisers.load(model_file), settings)
    with pytest.MonkeyPatch.context() as monkeypatch:
        trace = Trace(monkeypatch)
        quest.quantize(network, calibration, settings.methods.quest, 0)
    return trace


def test_quest_stages(network: QuantizedNetwork, trace: Trace) -> None:
    """TLA moves time projections and their input scales; CMA moves q, k, v and all scales outside the embedding."""
    layers = network.layers()
    projections = {name for name, layer in layers.items() if layer.role is Role.TIME_PROJECTION}
    assert trace.moved("tla") == {
        f"{name}.{part}" for name in projections for part in ("weight", "bias", "input_quantizer.scale")
    }
    attention = {
        name for name, layer in layers.items() if layer.role in (Role.ATTENTION_Q, Role.ATTENTION_K, Role.ATTENTION_V)
    }
    time_sites = {f"{name}.input_quantizer" for name, layer in layers.items() if layer.role in TIME}
    scales = {f"{name}.scale" for name in network.sites() if name not in time_sites}
    weights = {f"{name}.weight" for name in attention} | {f"{name}.bias" for name in attention}
    found = trace.moved("cma")
    assert found <= weights | scales
    # A key's bias shifts all scores of a query alike, which the softmax takes out: only the local loss trains it.
    assert weights <= found
    assert len(scales - found) <= 0.1 * len(scales), "a scale may happen to get no gradient"


def test_folded_weights_start_on_their_codes(
    make_quantized: Make, settings: DatasetSettings, calibration: Calibration
) -> None:
    """What is trained starts as it was rounded, and a step smaller than half a scale changes none of its codes; where a
    rounding is kept beside the weight, weights next to a whole number jump."""

    def changed(folded: bool) -> tuple[float, set[type]]:
        network = rounded(make_quantized(sets=settings.methods.quest.sets, calibrated=False))
        before = {name: layer.quantized_weight() for name, layer in network.layers().items()}
        # So many tiny steps that each weight moves by less than a twentieth of a scale.
        rates = {"8": 1e-5, "4": 1e-5}
        small = {"tla_weight_lr": rates, "cma_weight_lr": rates, "folded": folded}
        quest.quantize(network, calibration, settings.methods.quest.model_copy(update=small), 0)
        moved, roundings = [], set()
        for name, layer in network.layers().items():
            if layer.role in (Role.TIME_PROJECTION, Role.ATTENTION_Q, Role.ATTENTION_K, Role.ATTENTION_V):
                (quantizer, _), *_ = layer.weight_parts()
                moved.append(((layer.quantized_weight() - before[name]).abs() > quantizer.scale / 2).float().mean())
                roundings.add(type(quantizer.rounding))
            else:
                assert torch.equal(layer.quantized_weight(), before[name]), name
        return torch.stack(moved).mean().item(), roundings

    assert changed(folded=True) == (0, {Nearest})
    share, roundings = changed(folded=False)
    assert share > 0
    assert roundings == {Fixed}


def test_everything_else_is_frozen(network: QuantizedNetwork, trace: Trace) -> None:
    before, after = trace.before["tla"], trace.after["cma"]
    trained = {
        f"{name}.{part}"
        for name, layer in network.layers().items()
        if layer.role in (Role.TIME_PROJECTION, Role.ATTENTION_Q, Role.ATTENTION_K, Role.ATTENTION_V)
        for part in ("weight", "bias")
    } | {f"{name}.scale" for name in network.sites()}
    assert moved(before, after) <= trained
    frozen = [name for name in before if ".weight_quantizer." in name]
    assert {name.rpartition(".")[2] for name in frozen} == {"scale", "zero_point", "up"}
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert all(isinstance(q.rounding, Fixed) for layer in network.layers().values() for q, _ in layer.weight_parts())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_teacher_is_the_network_before_anything_was_trained(trace: Trace) -> None:
    assert trace.events == ["teach tla 0", "train tla", "teach tla 1", "teach cma 0", "train cma", "teach cma 1"]
    assert trace.moved("tla")
    for taught in trace.taught.values():
        assert not moved(taught, trace.before["tla"])


def test_quest_is_deterministic_and_says_what_it_did(
    make_quantized: Make, calibration: Calibration, settings: DatasetSettings
) -> None:
    results = []
    networks = [rounded(make_quantized("w4a4", calibrated=False)) for _ in range(2)]
    for global_seed, network in enumerate(networks):
        torch.manual_seed(global_seed)  # nothing hangs on the global generator
        outcome = quest.quantize(network, calibration, settings.methods.quest, 3)
        assert outcome.correction is None
        results.append((outcome.notes, state(network)))
    assert results[0][0] == results[1][0]
    assert not moved(results[0][1], results[1][1])
    notes = results[0][0]
    assert {stage: len(history) for stage, history in notes["loss"].items()} == {"tla": 2, "cma": 2}
    trained = total = 0
    for name, parameter in networks[0].network.named_parameters():
        if name.endswith(".scale"):
            continue
        total += parameter.numel()
        trained += parameter.numel() * any(f".{part}." in name for part in ("time_emb_proj", "to_q", "to_k", "to_v"))
    assert notes["trained_share"] == pytest.approx(trained / total)


def test_steps_of_the_optimizer(make_quantized: Make, calibration: Calibration, settings: DatasetSettings) -> None:
    notes = quest.quantize(rounded(make_quantized("w4a4")), calibration, settings.methods.quest, 0).notes
    # 2 epochs over 2 sets of 2 steps, of which 2 samples each in batches of 2, and 4 each in batches of 4.
    assert notes["optimizer_steps"] == {"tla": 2 * 2 * 2, "cma": 2 * 2 * 2}
    doubled = settings.methods.quest.model_copy(update={"passes": 2.0})
    notes = quest.quantize(rounded(make_quantized("w4a4")), calibration, doubled, 0).notes
    assert notes["optimizer_steps"] == {"tla": 16, "cma": 16}


def test_epochs_may_have_the_same_samples(
    monkeypatch: pytest.MonkeyPatch, make_quantized: Make, calibration: Calibration, settings: DatasetSettings
) -> None:
    trace = Trace(monkeypatch)
    network = rounded(make_quantized("w4a4", calibrated=False))
    quest.quantize(network, calibration, settings.methods.quest.model_copy(update={"rotated": False}), 0)
    assert trace.events == ["teach tla 0", "train tla", "teach cma 0", "train cma"]


@pytest.mark.parametrize("stages", [(), ("tla",), ("cma",), ("cma", "tla")])
def test_stages_can_be_left_out_and_exchanged(
    stages: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    make_quantized: Make,
    calibration: Calibration,
    settings: DatasetSettings,
) -> None:
    trace = Trace(monkeypatch)
    network = rounded(make_quantized("w4a4", calibrated=False))
    weights = {name: layer.weight.clone() for name, layer in network.layers().items()}
    notes = quest.quantize(network, calibration, settings.methods.quest.model_copy(update={"stages": stages}), 0).notes
    order = ((f"teach {name} 0", f"train {name}", f"teach {name} 1") for name in stages)
    assert trace.events == [event for stage in order for event in stage]
    assert list(notes["loss"]) == list(stages)
    changed = {layer.role for name, layer in network.layers().items() if not torch.equal(layer.weight, weights[name])}
    attention = {Role.ATTENTION_Q, Role.ATTENTION_K, Role.ATTENTION_V}
    expected = {"tla": {Role.TIME_PROJECTION}, "cma": attention}
    assert changed == {role for name in stages for role in expected[name]}
    assert (notes["trained_share"] == 0) == (not stages)
    assert all(bool(site.calibrated.all()) for site in network.sites().values())


def test_full_finetuning_trains_every_layer_and_every_scale(
    make_quantized: Make, calibration: Calibration, settings: DatasetSettings
) -> None:
    network = rounded(make_quantized("w4a4", calibrated=False))
    chosen = settings.methods.quest.model_copy(update={"stages": ("full",)})
    stage = quest.full_finetuning(network, chosen)
    assert stage.layers == network.layers()
    assert {id(site) for site in stage.sites} == {id(site) for site in network.sites().values()}
    weights = {name: layer.weight.clone() for name, layer in network.layers().items()}
    notes = quest.quantize(network, calibration, chosen, 0).notes
    assert not [name for name, layer in network.layers().items() if torch.equal(layer.weight, weights[name])]
    assert notes["trained_share"] > 0.9  # norms are left


def test_adapters_stand_in_for_the_weights_of_the_second_stage(
    make_quantized: Make, calibration: Calibration, settings: DatasetSettings
) -> None:
    network = rounded(make_quantized("w4a4", calibrated=False))
    before = {name: layer.weight.clone() for name, layer in network.layers().items()}
    biases = {name: layer.bias.clone() for name, layer in network.layers().items() if layer.bias is not None}
    names = set(state(network))
    chosen = settings.methods.quest.model_copy(update={"stages": ("cma",), "adapter_rank": 2})
    notes = quest.quantize(network, calibration, chosen, 0).notes
    assert set(state(network)) == names, "no adapter is left"
    trained = quest.attention_alignment(network, chosen).layers
    for name, layer in network.layers().items():
        change = layer.weight - before[name]
        rank = torch.linalg.matrix_rank(change.flatten(1), rtol=1e-2)
        assert rank == (2 if name in trained else 0)
        if layer.bias is not None:
            assert torch.equal(layer.bias, biases[name])
    adapters = sum(2 * sum(layer.weight.shape) for layer in trained.values())
    assert notes["trained_share"] * quest._parameters(network) == pytest.approx(adapters)


def test_quest_comes_closer_to_full_precision(
    make_quantized: Make, calibration: Calibration, make_settings: Callable[..., DatasetSettings]
) -> None:
    rates = {"tla_weight_lr": 1e-3, "tla_scale_lr": 1e-3, "cma_weight_lr": 1e-3, "cma_scale_lr": 1e-3}
    few = {
        "tla_epochs": 2,
        "cma_epochs": 10,
        "tla_samples": 8,
        "cma_samples": 8,
        "tla_batch_size": 8,
        "cma_batch_size": 8,
    }
    settings = make_settings(methods={"quest": rates | few})
    network = rounded(make_quantized("w4a4", calibrated=False))
    nearest.quantize(network, calibration, settings.methods.nearest, 0)
    samples = calibration.samples(8)

    def error() -> float:
        found = []
        with torch.no_grad():
            for step in range(4):
                network.set_step(step)
                mine = samples.steps == step
                found.append(network(samples.x[mine], samples.timesteps[mine]).sample - full[mine])
        return torch.cat(found).norm().item()

    with torch.no_grad(), network.quantizing(weights=False, activations=False):
        full = network(samples.x, samples.timesteps).sample
    before = error()
    quest.quantize(network, calibration, settings.methods.quest, 0)
    assert error() < 0.98 * before


def test_both_losses_off(
    make_quantized: Make, calibration: Calibration, make_settings: Callable[..., DatasetSettings]
) -> None:
    settings = make_settings(methods={"quest": {"local_loss": False, "global_loss": False}})
    with pytest.raises(ValueError, match="both losses are off"):
        quest.quantize(make_quantized("w4a4"), calibration, settings.methods.quest, 0)


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (("attention_qq",), r"cma_layers: unknown 'attention_qq' \(did you mean 'attention_q'\?\)"),
        (("feed_forward",), "cma: the network has no layer of the roles"),
    ],
)
def test_stage_without_layers(
    roles: tuple[str, ...],
    message: str,
    make_quantized: Make,
    calibration: Calibration,
    settings: DatasetSettings,
) -> None:
    chosen = settings.methods.quest.model_copy(update={"cma_layers": roles})
    with pytest.raises(ValueError, match=message):
        quest.quantize(rounded(make_quantized()), calibration, chosen, 0)
