"""EfficientDM: adapters that are nothing at first and integers at last, temporal scales, and what is trained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrize

from quest import architectures
from quest.architectures import Places
from quest.config.dataset import DatasetSettings
from quest.config.methods.efficientdm import EfficientDMSettings
from quest.config.values import Bits
from quest.deploy.start import recipe as make_recipe
from quest.diffusion import denoiser as denoisers
from quest.diffusion.denoiser import Denoiser
from quest.learning.calibration import Calibration
from quest.methods import efficientdm
from quest.quantization import storage
from quest.quantization.grid import MIN_SCALE
from quest.quantization.layers import QuantizedLayer
from quest.quantization.network import QuantizedNetwork
from quest.quantization.policy import EIGHT, FULL
from quest.quantization.quantizers import ActivationQuantizer
from quest.quantization.roles import Role
from quest.quantization.rounding import Fixed

NO_PLACES = Places((), "")  # none of its exceptions is a single layer

Make = Callable[..., QuantizedNetwork]
MakeSettings = Callable[..., DatasetSettings]
FAST = {"trajectories": 6, "batch_size": 8, "adapter_lr_divisor": 4, "activation_lr": 3e-3, "weight_scale_lr": 1e-5}


@pytest.fixture
def method(settings: DatasetSettings) -> EfficientDMSettings:
    return settings.methods.efficientdm


def outputs(network: QuantizedNetwork, calibration: Calibration) -> Tensor:
    """Predicted noise of all calibration samples, at their steps."""
    data = calibration.samples(2)
    predict, calls = denoisers.predictor(network), calibration.sampler.calls()
    with torch.no_grad():
        return torch.cat([predict(data.x[data.steps == step], calls[step]) for step in calibration.steps])


def attach(network: QuantizedNetwork, settings: EfficientDMSettings) -> dict[str, efficientdm.LowRank]:
    generator = torch.Generator().manual_seed(0)
    layers = efficientdm.trained_layers(network)
    return {name: efficientdm.attach_adapter(layer, settings, generator) for name, layer in layers.items()}


@pytest.mark.parametrize("base", ["int", "fp"])
@pytest.mark.parametrize("options", [{}, {"split_shortcuts": True}, {"weight_group": 8}])
def test_at_first_the_student_is_the_nearest_network(
    make_quantized: Make, calibration: Calibration, method: EfficientDMSettings, base: str, options: dict[str, Any]
) -> None:
    network = make_quantized("w4a4", sets=4, **options)
    before = outputs(network, calibration)
    attach(network, method.model_copy(update={"base": base}))
    assert torch.equal(outputs(network, calibration), before)


def round_up(network: QuantizedNetwork) -> None:
    """As reconstruction leaves a network, with a rounding far from nearest."""
    for layer in network.layers().values():
        for quantizer, weight in layer.weight_parts():
            quantizer.rounding = Fixed(torch.ones_like(quantizer.ratio(weight), dtype=torch.bool))


@pytest.mark.parametrize("base", ["int", "fp"])
@pytest.mark.parametrize("options", [{}, {"split_shortcuts": True}, {"weight_group": 8}])
def test_learned_rounding_is_what_the_student_starts_and_ends_from(
    make_quantized: Make, calibration: Calibration, method: EfficientDMSettings, base: str, options: dict[str, Any]
) -> None:
    network = make_quantized("w4a4", sets=4, **options)
    nearest = outputs(network, calibration)
    round_up(network)
    before = outputs(network, calibration)
    assert not torch.equal(before, nearest)
    attach(network, method.model_copy(update={"base": base}))
    torch.testing.assert_close(outputs(network, calibration), before)
    efficientdm.merge_adapters(network.layers().values())
    torch.testing.assert_close(outputs(network, calibration), before)


def test_a_learned_code_moves_only_beyond_half_a_step(
    make_quantized: Make, calibration: Calibration, method: EfficientDMSettings
) -> None:
    network = make_quantized("w4a4", sets=4)
    round_up(network)
    before = outputs(network, calibration)
    for name, adapter in attach(network, method).items():
        scale = network.layers()[name].weight_parts()[0][0].scale.view(-1, 1)
        adapter.b.data.normal_(generator=torch.Generator().manual_seed(1))
        adapter.b.data.mul_(0.49 * scale / (adapter.b @ adapter.a.flatten(1)).abs().amax(1, keepdim=True))
    torch.testing.assert_close(outputs(network, calibration), before)


def test_an_integer_base_moves_only_beyond_half_a_step(
    make_quantized: Make, calibration: Calibration, method: EfficientDMSettings
) -> None:
    network = make_quantized("w4a4", sets=4)
    before = outputs(network, calibration)
    codes = {n: q.codes(w) for n, layer in network.layers().items() for q, w in layer.weight_parts()}
    adapters = attach(network, method)
    for name, adapter in adapters.items():
        layer = network.layers()[name]
        (quantizer, _weight), *_ = layer.weight_parts()
        adapter.b.data.normal_(generator=torch.Generator().manual_seed(1))
        product = (adapter.b @ adapter.a.flatten(1)).abs().amax(1, keepdim=True)
        adapter.b.data.mul_(0.49 * quantizer.scale.view(-1, 1) / product)
    assert torch.equal(outputs(network, calibration), before)
    for name, adapter in adapters.items():
        layer = network.layers()[name]
        adapter.b.data.mul_(4)
        shift = layer.weight_parts()[0][0].codes(layer.weight) - codes[name]
        assert 1 <= shift.abs().max() <= 2
    assert not torch.equal(outputs(network, calibration), before)


def test_product_has_the_kernel_of_the_layer() -> None:
    weight = torch.zeros(5, 3, 2, 2)
    adapter = efficientdm.LowRank(weight, 4, torch.Generator().manual_seed(0))
    assert not adapter(weight).any()
    assert adapter.a.abs().max() <= 12**-0.5
    adapter.b.data.normal_()
    expected = torch.einsum("or,rchw->ochw", adapter.b, adapter.a)
    torch.testing.assert_close(adapter(weight), expected)


@pytest.mark.parametrize("base", ["int", "fp"])
@pytest.mark.parametrize("policy", ["common", "paper"])
def test_exported_integers_are_the_student(
    make_settings: MakeSettings,
    model_file: Path,
    calibration: Calibration,
    base: str,
    policy: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = make_settings(methods={"efficientdm": FAST | {"base": base, "policy": policy}})
    bits = Bits(4, 4)
    recipe = (
        make_recipe(settings, bits, 4, efficientdm.paper_policy(bits, NO_PLACES))
        if policy == "paper"
        else make_recipe(settings, bits, 4)
    )
    denoiser = denoisers.load(model_file)
    network = QuantizedNetwork(denoiser.network, recipe, denoiser.example())
    seen: list[Tensor] = []
    merge = efficientdm.merge_adapters

    def spy(layers: Any) -> None:
        seen.append(outputs(network, calibration))
        merge(layers)

    monkeypatch.setattr(efficientdm, "merge_adapters", spy)
    nearest = {n: q.codes(w) for n, layer in network.layers().items() for q, w in layer.weight_parts()}
    efficientdm.quantize(network, calibration, settings.methods.efficientdm, 0)
    final = {n: q.codes(w) for n, layer in network.layers().items() for q, w in layer.weight_parts()}
    trained = efficientdm.trained_layers(network)
    assert any(not torch.equal(final[name], nearest[name]) for name in trained)
    assert all(torch.equal(final[name], nearest[name]) for name in set(final) - set(trained))
    assert not any(parametrize.is_parametrized(layer) for layer in network.layers().values())
    torch.testing.assert_close(outputs(network, calibration), seen[0], rtol=1e-4, atol=1e-5)

    other = denoisers.load(model_file)
    restored = QuantizedNetwork(other.network, recipe, other.example(), search=False)
    storage.restore(restored, storage.export(network))
    torch.testing.assert_close(outputs(restored, calibration), outputs(network, calibration), rtol=1e-4, atol=1e-5)
    assert restored.account() == network.account()


@pytest.mark.parametrize(("steps", "timestep_of_5"), [(100, 941), (20, 701)])
def test_each_sampling_step_has_its_own_scale(
    denoiser: Denoiser, make_settings: MakeSettings, steps: int, timestep_of_5: int
) -> None:
    settings = make_settings(sampler={"steps": steps}, methods={"efficientdm": {"sets": steps}})
    assert int(denoiser.sampler(settings.sampler).timesteps[5]) == timestep_of_5
    network = QuantizedNetwork(denoiser.network, make_recipe(settings, Bits(4, 4), steps), denoiser.example())
    for step in (0, 5, steps - 1):
        network.set_step(step)
        assert network.step.index == step
    assert all(len(site.scale) == steps for site in network.sites().values())


def test_only_the_present_step_learns(make_quantized: Make, calibration: Calibration) -> None:
    network = make_quantized("w4a4", sets=4)
    sites = network.sites().values()
    for site in sites:
        site.scale.requires_grad_(True)
        site.zero_point.requires_grad_(True)
    denoisers.predictor(network)(calibration.x[2], calibration.sampler.calls()[2]).square().sum().backward()
    for site in sites:
        assert site.scale.grad is not None
        assert not site.scale.grad[[0, 1, 3]].any()
    assert any(bool(site.zero_point.grad[2].any()) for site in sites if site.zero_point.grad is not None)


def test_a_learned_zero_point_keeps_the_number_of_levels(make_quantized: Make) -> None:
    network = make_quantized("w4a4", sets=4, activation_granularity={"4": "per_tensor"})
    site: ActivationQuantizer = next(s for s in network.sites().values() if s.grid.bits == 4)
    network.set_step(1)
    site.zero_point.fill_(7.4)
    x = torch.linspace(-20, 20, 5000) * site.scale[1].flatten()
    assert len(torch.unique(site(x.view(5000, *[1] * (site.scale.ndim - 2))))) == 16


def test_it_trains_what_it_says_and_learns_something(
    make_quantized: Make, calibration: Calibration, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(methods={"efficientdm": FAST | {"trajectories": 40}}).methods.efficientdm
    network = make_quantized("w4a4", calibrated=False, sets=4)
    full = {name: layer.weight.clone() for name, layer in network.layers().items()}
    biases = {name: tensor.clone() for name, tensor in network.named_parameters() if name.endswith("bias")}
    groups: list[dict[str, Any]] = []
    record = efficientdm.parameter_groups
    monkeypatch.setattr(efficientdm, "parameter_groups", lambda *a: groups.extend(record(*a)) or groups)
    notes = efficientdm.quantize(network, calibration, settings, 0).notes
    history = notes["loss"]["trajectories"]
    assert len(history) == 40
    assert sum(history[-10:]) < 0.9 * sum(history[:10])
    samples = 40 * 4 * 8
    assert notes["passes"] == dict.fromkeys(("teacher_forward", "student_forward", "student_backward"), samples)

    layers, sites = network.layers(), network.sites()
    assert len(groups) == len(layers) + 3, "an adapter each, weight scales, activation scales, zero points"
    assert [len(group["params"]) for group in groups[-3:]][:2] == [len(layers), len(sites)]
    assert len(groups[-1]["params"]) == sum(site.grid.kind == "asymmetric" for site in sites.values())
    for site in sites.values():
        assert bool((site.scale >= MIN_SCALE).all())
        assert torch.equal(site.zero_point, site.zero_point.round())
    assert all(torch.equal(biases[name], tensor) for name, tensor in network.named_parameters() if name in biases)
    assert not any(tensor.requires_grad for tensor in (*network.parameters(), *network.buffers()))
    assert any(not torch.equal(full[name], layer.weight) for name, layer in layers.items())


def test_adapters_learn_in_proportion_to_the_weight_scale(make_quantized: Make, method: EfficientDMSettings) -> None:
    network = make_quantized("w4a4", sets=4)
    layers, sites = efficientdm.trained_layers(network), efficientdm.trained_sites(network)
    groups = efficientdm.parameter_groups(layers, attach(network, method), sites, method)
    for group, layer in zip(groups, layers.values(), strict=False):
        scale = layer.weight_parts()[0][0].scale
        assert group["lr"] == pytest.approx(scale.mean().item() / 2500)
        assert [tuple(p.shape)[:1] for p in group["params"]] == [(method.rank,), (len(layer.weight),)]
    assert [group["lr"] for group in groups[-3:]] == [1e-6, 5e-4, 5e-4]


def test_the_student_never_sees_its_own_trajectory(
    make_quantized: Make, calibration: Calibration, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every state that either network is shown in training is one of the full-precision sampler's."""
    settings = make_settings(methods={"efficientdm": FAST | {"trajectories": 1, "batch_size": 2}}).methods.efficientdm
    network = make_quantized("w4a4", calibrated=False, sets=4)
    teacher = copy.deepcopy(network)
    noise = efficientdm.SampleNoise("efficientdm", 5, [0, 1], calibration.x.shape[2:])
    with torch.no_grad(), teacher.quantizing(weights=False, activations=False):
        predict = denoisers.predictor(teacher)
        expected = list(calibration.sampler.trajectory(predict, noise, torch.device("cpu")))[:-1]
    shown: list[Tensor] = []
    output = denoisers.Outputs.__call__

    def noted(outputs: denoisers.Outputs, x: Tensor, *rest: Any) -> Tensor:
        shown.append(x)
        return output(outputs, x, *rest)

    monkeypatch.setattr(denoisers.Outputs, "__call__", noted)
    efficientdm.quantize(network, calibration, settings, 5)
    assert len(shown) == 2 * len(expected)
    for index, state in enumerate(expected):
        assert torch.equal(shown[2 * index], state)
        assert torch.equal(shown[2 * index + 1], state)


def test_deterministic_for_a_seed(make_quantized: Make, calibration: Calibration, method: EfficientDMSettings) -> None:
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(results))  # nothing hangs on the global generator
        network = make_quantized("w4a4", calibrated=False, sets=4)
        notes = efficientdm.quantize(network, calibration, method, seed).notes
        results.append((notes, storage.export(network)))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(tensor, results[1][1][name]) for name, tensor in results[0][1].items())
    assert results[0][0] != results[2][0]


def test_weights_may_start_from_the_common_search(
    make_quantized: Make, calibration: Calibration, method: EfficientDMSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(efficientdm, "distil", lambda *_: ([], 0))
    found = {}
    for search in ("quantizer", "max"):
        network = make_quantized("w4a4", calibrated=False, sets=4, weight_search="mse")
        before = {name: layer.weight_parts()[0][0].scale.clone() for name, layer in network.layers().items()}
        efficientdm.quantize(network, calibration, method.model_copy(update={"weight_search": search}), 0)
        scales = {name: layer.weight_parts()[0][0].scale for name, layer in network.layers().items()}
        found[search] = all(torch.equal(before[name], scale) for name, scale in scales.items())
        if search == "max":
            span = {name: layer.weight.flatten(1) for name, layer in make_quantized(calibrated=False).layers().items()}
            for name, weight in span.items():
                expected = (weight.amax(1).clamp(min=0) - weight.amin(1).clamp(max=0)) / 15
                torch.testing.assert_close(scales[name].flatten(), expected)
    assert found == {"quantizer": True, "max": False}


@pytest.mark.parametrize(("name", "candidates", "full"), [("stable-diffusion-v1.4", 265, 17), ("ddpm-cifar10", 97, 16)])
def test_layers_of_the_paper(name: str, candidates: int, full: int, published_unet: Callable[[str], Any]) -> None:
    """The counts of the released code's layer filter; four of the layers have 8 bits."""
    found = architectures.of(published_unet(name)).roles()
    policy = efficientdm.paper_policy(Bits(4, 4), NO_PLACES)
    bits = {layer: policy.bits(layer, role, Bits(4, 4)) for layer, role in found.items()}
    assert sum(each != FULL for each in bits.values()) == candidates
    assert {found[name] for name, each in bits.items() if each == FULL} == {Role.SHORTCUT, Role.DOWNSAMPLE}
    assert sum(each == FULL for each in bits.values()) == full
    special = [name for name, each in bits.items() if each == EIGHT]
    assert special == ["conv_in", "time_embedding.linear_1", "time_embedding.linear_2", "conv_out"]
    assert not policy.attention


def test_layers_of_other_bits_are_not_trained(
    make_settings: MakeSettings, denoiser: Denoiser, calibration: Calibration
) -> None:
    """Also where the run itself has 8 bits."""
    bits = Bits(8, 8)
    recipe = make_recipe(make_settings(), bits, 4, efficientdm.paper_policy(bits, NO_PLACES))
    network = QuantizedNetwork(denoiser.network, recipe, denoiser.example())
    special = {"conv_in", "time_embedding.linear_1", "time_embedding.linear_2", "conv_out"}
    trained = efficientdm.trained_layers(network)
    assert set(network.layers()) - set(trained) == special
    assert all(isinstance(layer, QuantizedLayer) for layer in trained.values())
    assert set(efficientdm.trained_sites(network)) == {f"{name}.input_quantizer" for name in trained}
