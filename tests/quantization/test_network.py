"""The quantized network: exact off, closer with more bits, the same after export, and errors that name the layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from quest.config.dataset import DatasetSettings
from quest.config.quantizer import QuantizerSettings
from quest.config.values import Bits
from quest.deploy.start import recipe as make_recipe
from quest.diffusion import denoiser as denoisers
from quest.diffusion.denoiser import Denoiser
from quest.learning.calibration import Calibration
from quest.learning.finetuning import calibrate_activations
from quest.quantization import storage
from quest.quantization.granularity import PerAxis, PerGroup, PerTensor
from quest.quantization.network import QuantizedNetwork
from quest.quantization.policy import Policy
from quest.quantization.quantizers import Split, calibrating
from quest.quantization.recipe import Recipe
from quest.quantization.roles import Role
from quest.quantization.rounding import Fixed

Make = Callable[..., QuantizedNetwork]
MakeSettings = Callable[..., DatasetSettings]
X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
T = torch.tensor([900, 600, 300, 10])
EXAMPLE = (torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.long))


@torch.no_grad()
def output(network: nn.Module, x: Tensor = X, t: Tensor = T) -> Tensor:
    return network(x, t).sample


def outputs(network: QuantizedNetwork, calibration: Calibration) -> Tensor:
    """Outputs on the recorded states of every sampling step, (steps, N, C, H, W)."""
    found = []
    for index, step in enumerate(calibration.steps):
        network.set_step(step)
        x = calibration.x[index]
        found.append(output(network, x, calibration.timesteps[step].expand(len(x))))
    return torch.stack(found)


def distance(x: Tensor, y: Tensor) -> float:
    return ((x - y).norm() / y.norm()).item()


def test_switched_off_it_is_the_original_network(make_quantized: Make, denoiser: Denoiser) -> None:
    expected = output(denoiser.network)
    network = make_quantized("w2a2")
    network.set_step(0)
    with network.quantizing(weights=False, activations=False):
        torch.testing.assert_close(output(network), expected, atol=1e-5, rtol=0)  # attention is not fused
        for module in denoiser.network.modules():
            if isinstance(module, Attention):
                module.set_processor(AttnProcessor())
        torch.testing.assert_close(output(network), output(denoiser.network), atol=1e-6, rtol=0)
    assert distance(output(network), expected) > 0.1, "and on again afterwards"


def test_switched_off_it_is_exact_but_for_attention(make_unet: Callable[..., UNet2DModel]) -> None:
    unet = make_unet(
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
    )
    expected = output(unet)
    network = QuantizedNetwork(unet, Recipe(Bits(2, 2), QuantizerSettings(weight_search="max"), 1, 1), EXAMPLE)
    with network.quantizing(weights=False, activations=False):
        assert torch.equal(output(network), expected)


def test_error_falls_with_bits(make_quantized: Make, calibration: Calibration) -> None:
    network = make_quantized("w8a8", calibrated=False)
    network.set_step(0)
    with network.quantizing(weights=False, activations=False):
        expected = outputs(network, calibration)
    w8a8, w4a8, w4a4, w2a2 = (
        distance(outputs(make_quantized(bits, activation_search="max"), calibration), expected)
        for bits in ("w8a8", "w4a8", "w4a4", "w2a2")
    )
    assert 0 < w8a8 < 0.05
    assert 2 * w8a8 < w4a8 < w4a4 < w2a2


def test_weights_alone_and_activations_alone(make_quantized: Make, denoiser: Denoiser) -> None:
    expected = output(denoiser.network)
    network = make_quantized("w4a4")
    network.set_step(0)
    found = {}
    for switches in ((True, True), (True, False), (False, True)):
        with network.quantizing(weights=switches[0], activations=switches[1]):
            found[switches] = output(network)
    assert all(distance(value, expected) > 1e-3 for value in found.values())
    assert len({value.sum().item() for value in found.values()}) == 3
    assert torch.equal(output(network), found[True, True])


def test_bits_are_where_they_belong(make_quantized: Make) -> None:
    network = make_quantized("w3a4", softmax_bits=7, edge_activation_bits=6)
    for name, layer in network.layers().items():
        (part,) = layer.weight_parts()
        assert part[0].grid.bits == 3
        assert part[0].granularity == PerAxis(0)
        edge = layer.role in (Role.FIRST, Role.LAST)
        assert network.sites()[f"{name}.input_quantizer"].grid.bits == (6 if edge else 4)
    bits = {name.rpartition(".")[2]: site.grid for name, site in network.sites().items() if ".processor." in name}
    assert {operand: grid.bits for operand, grid in bits.items()} == {"q": 4, "k": 4, "v": 4, "probabilities": 7}
    assert bits["probabilities"].kind == "positive"
    attentions = sum(isinstance(module, Attention) for module in network.modules())
    assert attentions == 4
    assert len(network.sites()) == len(network.layers()) + 4 * attentions


def test_weights_by_groups_of_inputs(make_quantized: Make) -> None:
    whole, grouped = make_quantized("w3a8"), make_quantized("w3a8", weight_group=8)
    layers = grouped.layers()
    (first, _weight) = layers["conv_in"].weight_parts()[0]
    assert first.granularity == PerAxis(0)
    for name, layer in layers.items():
        (quantizer, weight) = layer.weight_parts()[0]
        if name == "conv_in":
            continue
        assert quantizer.granularity == PerGroup(8)
        assert quantizer.scale.shape == (len(weight), weight[0].numel() // 8, 1)
        codes = quantizer.granularity.rows(quantizer.codes(weight))
        assert all(len(row.unique()) <= 8 for row in codes)
        errors = [each.layers()[name].quantized_weight() - weight for each in (grouped, whole)]
        grouped_error, whole_error = (error.square().sum() for error in errors)
        # A layer of 8 inputs has one group.
        assert grouped_error < whole_error if weight[0].numel() > 8 else torch.equal(*errors)
    assert grouped.account()["weight_granularity"] == "groups_of_8"
    assert whole.account()["weight_granularity"] == "per_channel"
    assert grouped.account()["weight_mib"] > whole.account()["weight_mib"]


def test_group_that_does_not_fit_a_layer_is_named(denoiser: Denoiser, make_settings: MakeSettings) -> None:
    settings = make_settings(quantizer={"weight_group": 16})
    message = r"^time_embedding\.linear_1\.weight: .*groups of 16 .*found 8 inputs to a channel, expected a multiple"
    with pytest.raises(ValueError, match=message):
        QuantizedNetwork(denoiser.network, make_recipe(settings, Bits(4, 8), 2), EXAMPLE)


def test_groups_of_another_recipe_do_not_restore(make_quantized: Make) -> None:
    exported = storage.export(make_quantized("w4a4"))
    with pytest.raises(ValueError, match=r"weight\.0\.scale: found shape .*, expected"):
        storage.restore(make_quantized("w4a4", weight_group=8), exported)


MULTIPLES: dict[str, Any] = {"activation_granularity": {"4": "multiples"}}


def test_multiples_are_of_layers_and_of_operands(make_quantized: Make) -> None:
    """Not of attention's probabilities, whose zero is fixed, nor of the 8 bits of the edges."""
    network = make_quantized("w4a4", **MULTIPLES)
    assert network.account()["activation_granularity"] == "multiples"  # the levels of each channel are counted in it
    with_multiples = {name for name, site in network.sites().items() if site.multiple is not None}
    without = set(network.sites()) - with_multiples
    assert all(name.startswith(("conv_in.", "conv_out.")) or name.endswith("probabilities") for name in without)
    for name in with_multiples:
        site = network.sites()[name]
        assert site.scale.numel() == 2, "one for each set"
        assert site.zero_point.shape[1:].numel() == max(site.zero_point.shape[1:]) > 1
        assert site.multiple is not None
        assert site.multiple.shape == site.zero_point.shape
        assert site.multiple.dtype == torch.uint8
    assert any(name.endswith(".q") for name in with_multiples)
    used = torch.cat([network.sites()[name].multiple.flatten() for name in with_multiples])  # type: ignore[union-attr]
    assert set(used.tolist()) == set(range(1, 9))
    network = make_quantized("w4a4", activation_symmetric=True, **MULTIPLES)
    assert all(site.multiple is None for site in network.sites().values())


@pytest.mark.parametrize(
    ("bits", "expected"), [("w4a8", "per_tensor"), ("w4a4", "per_channel"), ("w4a3", "per_channel")]
)
def test_activation_granularity_follows_the_bits(make_quantized: Make, bits: str, expected: str) -> None:
    network = make_quantized(bits)
    layer = network.layers()["down_blocks.1.resnets.0.conv2"]
    assert isinstance(layer.input_quantizer.granularity, PerTensor if expected == "per_tensor" else PerAxis)
    assert layer.input_quantizer.scale.shape == ((2, 1, 1, 1, 1) if expected == "per_tensor" else (2, 1, 16, 1, 1))
    assert network.account()["activation_granularity"] == expected


@pytest.mark.parametrize("symmetric", [False, True])
def test_activations_have_at_most_2_to_the_b_levels_per_scale(make_quantized: Make, symmetric: bool) -> None:
    network = make_quantized("w8a3", activation_symmetric=symmetric)
    checked = []

    def check(name: str):
        def hook(module: Any, _inputs: Any, quantized: Tensor) -> None:
            rows = module.granularity.rows(quantized)
            assert all(len(row.unique()) <= 2**module.grid.bits for row in rows), name
            checked.append(name)

        return hook

    for name, site in network.sites().items():
        site.register_forward_hook(check(name))
    network.set_step(0)
    output(network)
    assert set(checked) == set(network.sites())


def test_calling_before_set_step(make_quantized: Make) -> None:
    with pytest.raises(ValueError, match="set the sampling step first"):
        output(make_quantized(calibrated=False))
    with pytest.raises(ValueError, match="sampling step 4; this network was calibrated for steps 0 to 3"):
        make_quantized(calibrated=False).set_step(4)


def test_nothing_requires_grad_and_nothing_is_in_training_mode(make_quantized: Make) -> None:
    network = make_quantized()
    assert not any(parameter.requires_grad for parameter in network.parameters())
    network.set_step(0)
    assert torch.equal(output(network), output(network)), "the dropout of the model is off"


def decided(network: QuantizedNetwork, seed: int) -> QuantizedNetwork:
    """``network`` with each weight rounded up or down at random."""
    generator = torch.Generator().manual_seed(seed)
    for layer in network.layers().values():
        for quantizer, weight in layer.weight_parts():
            quantizer.rounding = Fixed(torch.rand(quantizer.ratio(weight).shape, generator=generator) > 0.5)
    return network


@pytest.mark.parametrize(
    ("bits", "options"),
    [
        ("w8a8", {"activation_search": "mse", "activation_symmetric": True}),
        ("w4a4", {}),
        ("w3a5", {"split_shortcuts": True, "activation_symmetric": True}),
        ("w2a2", {"split_shortcuts": True}),
        ("w4a8", {"weight_group": 8, "split_shortcuts": True}),
        ("w3a4", {"weight_group": 4}),
        ("w4a4", MULTIPLES),
        ("w4a3", MULTIPLES | {"split_shortcuts": True}),
    ],
)
def test_export_and_restore_give_the_same_network(
    make_quantized: Make, calibration: Calibration, bits: str, options: dict[str, Any]
) -> None:
    source = decided(make_quantized(bits, **options), 0)
    expected = outputs(source, calibration)
    exported = {name: tensor.clone() for name, tensor in storage.export(source).items()}
    for suffix, dtype in ((".codes", torch.uint8), (".zero_point", torch.int32)):
        assert all(tensor.dtype == dtype for name, tensor in exported.items() if name.endswith(suffix))
    target = decided(make_quantized(bits, calibrated=False, **options), 1)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.mul_(1.37).add_(0.01)  # everything must come from the file
    storage.restore(target, exported)
    assert torch.equal(outputs(target, calibration), expected)
    again = storage.export(target)
    assert set(again) == set(exported)
    assert all(torch.equal(again[name], tensor) for name, tensor in exported.items())


def test_export_of_an_uncalibrated_network(make_quantized: Make) -> None:
    network = make_quantized(calibrated=False)
    network.set_step(0)
    with calibrating(network):
        output(network)
    with pytest.raises(ValueError, match=r"conv_in\.input_quantizer: activation scales of sets \[1\] were never"):
        storage.export(network)


def changed(tensors: dict[str, Tensor], name: str, value: Tensor | None) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in tensors.items() if key != name} | ({} if value is None else {name: value})


@pytest.mark.parametrize(
    "name",
    [
        "conv_in.weight.0.codes",
        "down_blocks.1.attentions.0.to_q.weight.0.scale",
        "mid_block.resnets.0.conv1.input_quantizer.scale",
        "conv_out.bias",
    ],
)
def test_restore_names_a_missing_or_misshapen_tensor(make_quantized: Make, name: str) -> None:
    network = make_quantized()
    tensors = dict(storage.export(network))
    with pytest.raises(ValueError, match=f"^{name}: missing"):
        storage.restore(network, changed(tensors, name, None))
    longer = torch.cat([tensors[name], tensors[name]])
    with pytest.raises(ValueError, match=f"^{name}: found .*{len(longer)}.*, expected .*{len(tensors[name])}"):
        storage.restore(network, changed(tensors, name, longer))


def test_restore_names_multiples_that_are_missing_or_misshapen(make_quantized: Make) -> None:
    network = make_quantized(**MULTIPLES)
    tensors = dict(storage.export(network))
    name = "mid_block.resnets.0.conv1.input_quantizer.multiple"
    with pytest.raises(ValueError, match=rf"^{name}: missing"):
        storage.restore(network, changed(tensors, name, None))
    with pytest.raises(ValueError, match=rf"^{name}: found shape .*, expected"):
        storage.restore(network, changed(tensors, name, tensors[name][:, :, 1:]))
    with pytest.raises(ValueError, match=rf"{name}: not part of this network|scale: found shape"):
        storage.restore(make_quantized(), tensors)


def test_restore_names_a_strange_tensor(make_quantized: Make) -> None:
    network = make_quantized()
    with pytest.raises(ValueError, match=r"^conv_in\.extra: not part of this network under recipe .*w4a4"):
        storage.restore(network, storage.export(network) | {"conv_in.extra": torch.zeros(1)})


def test_other_bits_do_not_restore(make_quantized: Make) -> None:
    with pytest.raises(ValueError, match=r"codes: found \(\d+,\) torch.uint8, expected"):
        storage.restore(make_quantized("w4a4"), storage.export(make_quantized("w8a4")))


def test_weight_that_is_not_finite_is_named(denoiser: Denoiser, settings: DatasetSettings) -> None:
    denoiser.network.get_parameter("mid_block.resnets.0.conv1.weight").data[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"^mid_block\.resnets\.0\.conv1\.weight: .*1 values that are NaN"):
        QuantizedNetwork(denoiser.network, make_recipe(settings, Bits(4, 8), 2), EXAMPLE)


def test_activation_that_is_not_finite_is_named(make_quantized: Make, calibration: Calibration) -> None:
    network = make_quantized()
    network.layers()["conv_in"].bias.data[0] = float("inf")  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"^activation down_blocks\.0\.resnets\.0\.conv1\.input_quantizer: .*NaN"):
        calibrate_activations(network, calibration)


def test_quantized_input_of_a_full_precision_weight(denoiser: Denoiser, settings: DatasetSettings) -> None:
    policy = Policy("strange", (("conv_in", Bits(32, 8)),))
    with pytest.raises(ValueError, match=r"^conv_in: w32a8 asks for a quantized input of a full-precision weight"):
        QuantizedNetwork(denoiser.network, make_recipe(settings, Bits(4, 8), 2, policy), EXAMPLE)


def test_layer_that_is_never_reached_is_named(
    denoiser: Denoiser, make_settings: Callable[..., DatasetSettings]
) -> None:
    settings = make_settings(quantizer={"roles": {"mid_block.conv_in": "convolution"}})
    denoiser.network.get_submodule("mid_block").add_module("conv_in", nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match=r"never reaches: mid_block\.conv_in"):
        QuantizedNetwork(denoiser.network, make_recipe(settings, Bits(4, 8), 2), EXAMPLE)


def test_frozen_weights_give_the_same_outputs(make_quantized: Make, calibration: Calibration) -> None:
    network = make_quantized()
    expected = outputs(network, calibration)
    with network.frozen():
        assert torch.equal(outputs(network, calibration), expected)
        for layer in network.layers().values():
            layer.weight.data.mul_(0.5)
        assert torch.equal(outputs(network, calibration), expected), "weights are not quantized again"
    assert distance(outputs(network, calibration), expected) > 0.01


@pytest.fixture
def two_widths(denoiser: Denoiser, settings: DatasetSettings, calibration: Calibration) -> QuantizedNetwork:
    """The tiny model at w4a8 whose sampling steps may use 4 activation bits instead, calibrated at both."""
    network = QuantizedNetwork(denoiser.network, make_recipe(settings, Bits(4, 8), 2, lower=(4,)), EXAMPLE)
    for bits in (8, 4):
        network.use([bits] * 4)
        calibrate_activations(network, calibration)
    return network


MIXED = [4, 8, 4, 8]


def test_each_step_is_the_network_of_its_bits(
    two_widths: QuantizedNetwork, make_quantized: Make, calibration: Calibration
) -> None:
    alone = {bits: outputs(make_quantized(f"w4a{bits}"), calibration) for bits in (4, 8)}
    two_widths.use(MIXED)
    assert two_widths.used() == MIXED
    found = outputs(two_widths, calibration)
    assert all(torch.equal(found[step], alone[bits][step]) for step, bits in enumerate(MIXED))


def test_levels_are_those_of_the_bits_in_use(two_widths: QuantizedNetwork, calibration: Calibration) -> None:
    two_widths.use(MIXED)
    found: dict[int, list[int]] = {4: [], 8: []}
    site = two_widths.layers()["mid_block.resnets.0.conv1"].input_quantizer
    rows = two_widths.sites()["mid_block.resnets.0.conv1.input_quantizer.1"].granularity.rows
    site.register_forward_hook(
        lambda _m, _i, quantized: found[two_widths.used()[step]].append(
            max(len(row.unique()) for row in rows(quantized))
        )
    )
    for step in range(4):
        two_widths.set_step(step)
        output(two_widths, calibration.x[step], calibration.timesteps[step].expand(8))
    assert max(found[4]) <= 16 < min(found[8])
    assert max(found[8]) <= 256


def test_account_is_the_mean_over_sampling_steps(two_widths: QuantizedNetwork, make_quantized: Make) -> None:
    low, high = make_quantized("w4a4").account(), make_quantized("w4a8").account()
    two_widths.use([4, 4, 4, 8])
    found = two_widths.account()
    for key in ("gbops", "mean_activation_bits"):
        assert low[key] < high[key]
        assert found[key] == pytest.approx(0.75 * low[key] + 0.25 * high[key])
    assert found["activation_granularity"] == "per_tensor and per_channel"
    assert found["mean_weight_bits"] == 4
    extra = sum(
        site.scale.numel() + (site.grid.kind == "asymmetric") * site.zero_point.numel()
        for name, site in two_widths.sites().items()
        if name.endswith(".1")
    )
    assert found["weight_mib"] - high["weight_mib"] == pytest.approx(extra * 32 / 8 / 2**20), "both widths are stored"


def test_bits_of_the_steps_travel(
    two_widths: QuantizedNetwork, model_file: Path, settings: DatasetSettings, calibration: Calibration
) -> None:
    two_widths.use(MIXED)
    exported = dict(storage.export(two_widths))
    assert exported["step_bits"].tolist() == MIXED
    recipe = Recipe.from_plain(two_widths.recipe.plain())
    assert recipe == two_widths.recipe
    other = QuantizedNetwork(denoisers.load(model_file).network, recipe, EXAMPLE, search=False)
    storage.restore(other, exported)
    assert other.used() == MIXED
    assert torch.equal(outputs(other, calibration), outputs(two_widths, calibration))
    for value, message in (
        (None, "step_bits: missing"),
        (torch.tensor([4, 8, 6, 8]), r"step_bits: .*found \[4, 8, 6, 8\], expected 4 of \[8, 4\]"),
        (torch.tensor([4, 8]), r"step_bits: .*found \[4, 8\], expected 4 of \[8, 4\]"),
    ):
        with pytest.raises(ValueError, match=message):
            storage.restore(other, changed(exported, "step_bits", value))


def test_width_that_was_never_calibrated_is_not_exported(two_widths: QuantizedNetwork) -> None:
    two_widths.sites()["conv_out.input_quantizer.1"].calibrated[1] = False
    with pytest.raises(ValueError, match=r"conv_out\.input_quantizer\.1: activation scales of sets \[1\] were never"):
        storage.export(two_widths)


def test_network_of_one_width_has_no_choice(make_quantized: Make) -> None:
    network = make_quantized("w4a8")
    assert network.used() == [8] * 4
    assert "step_bits" not in storage.export(network)
    with pytest.raises(ValueError, match=r"found \[4, 4, 4, 4\], expected 4 of \[8\]"):
        network.use([4] * 4)


def test_sixteen_bits_are_full_precision(denoiser: Denoiser, calibration: Calibration) -> None:
    """Of weights and activations, with one scale for all steps and for a whole tensor."""
    options = QuantizerSettings(
        activation_search="max",
        softmax_bits=16,
        activation_granularity={"4": "per_tensor", "8": "per_tensor"},
    )
    policy = Policy("sixteen", tuple((role, Bits(16, 16)) for role in (Role.FIRST, Role.LAST)))
    network = QuantizedNetwork(denoiser.network, Recipe(Bits(16, 16), options, 1, 4, policy), EXAMPLE)
    for index in range(4):
        network.set_step(index)
        with network.quantizing(weights=False, activations=False):
            x, t = calibration.x[index], calibration.timesteps[index].expand(8)
            expected = output(network, x, t)
        with calibrating(network):
            output(network, x, t)
        assert 0 < distance(output(network, x, t), expected) < 1e-3
    with pytest.raises(ValueError, match=r"^conv_in\.weight\.0\.codes: found codes of 16 bits, expected at most 8"):
        storage.export(network)


@pytest.mark.parametrize("weight_search", ["max", "mse"])
def test_weights_and_activations_that_are_all_zero(
    denoiser: Denoiser, make_settings: MakeSettings, calibration: Calibration, weight_search: str
) -> None:
    """They stay zero, and whatever follows stays finite, also after a file."""
    for name in ("mid_block.resnets.0.conv1", "down_blocks.0.resnets.0.norm2"):
        layer = denoiser.network.get_submodule(name)
        layer.weight.data.zero_()  # type: ignore[operator]
        layer.bias.data.zero_()  # type: ignore[operator]
    denoiser.network.get_parameter("up_blocks.0.resnets.0.conv1.weight").data[3].zero_()
    settings = make_settings(quantizer={"weight_search": weight_search})
    network = QuantizedNetwork(denoiser.network, make_recipe(settings, Bits(4, 4), 2), EXAMPLE)
    calibrate_activations(network, calibration)
    layers = network.layers()
    assert not layers["mid_block.resnets.0.conv1"].quantized_weight().any()
    weight = layers["up_blocks.0.resnets.0.conv1"].quantized_weight()
    assert not weight[3].any()
    assert bool(weight[2].any())
    site = layers["down_blocks.0.resnets.0.conv2"].input_quantizer
    assert not site(torch.zeros(1, 8, 8, 8)).any()
    expected = outputs(network, calibration)
    assert bool(torch.isfinite(expected).all())
    exported = {name: tensor.clone() for name, tensor in storage.export(network).items()}
    assert all(bool(torch.isfinite(tensor).all()) for tensor in exported.values())
    storage.restore(network, exported)
    assert torch.equal(outputs(network, calibration), expected)


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        (Bits(1, 8), r"^conv_in\.weight: a grid of 1 bits; expected 2 to 16"),
        (Bits(4, 1), r"^conv_in, its input: a grid of 1 bits; expected 2 to 16"),
    ],
)
def test_impossible_bits_of_a_layer_are_named(
    denoiser: Denoiser, settings: DatasetSettings, bits: Bits, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        QuantizedNetwork(
            denoiser.network, make_recipe(settings, Bits(4, 8), 2, Policy("x", (("conv_in", bits),))), EXAMPLE
        )


def test_frozen_but_for_named_layers(make_quantized: Make, calibration: Calibration) -> None:
    network = make_quantized()
    expected = outputs(network, calibration)
    with network.frozen(but={"conv_in"}):
        network.layers()["conv_out"].weight.data.mul_(0.5)
        assert torch.equal(outputs(network, calibration), expected)
        network.layers()["conv_in"].weight.data.mul_(0.5)
        assert distance(outputs(network, calibration), expected) > 0.01


def test_recipe_as_json(settings: DatasetSettings) -> None:
    recipe = make_recipe(settings, Bits(4, 8), 2)
    assert Recipe.from_plain(recipe.plain()) == recipe


def test_shortcuts_split_by_the_feature_channels(make_unet: Callable[..., UNet2DModel]) -> None:
    """The CIFAR-10 layout at a sixteenth of its channels: 12 split layers with the indices of the released code."""
    unet = make_unet(
        sample_size=16,
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )
    recipe = Recipe(Bits(4, 8), QuantizerSettings(split_shortcuts=True), 1, 1)
    network = QuantizedNetwork(unet, recipe, (torch.zeros(1, 1, 16, 16), torch.zeros(1, dtype=torch.long)))
    split = {name: layer for name, layer in network.layers().items() if isinstance(layer.weight_quantizer, Split)}
    found = {
        name.removesuffix(".conv_shortcut"): (layer.weight_quantizer.at * 16, layer.weight.shape[1] * 16)
        for name, layer in split.items()
        if isinstance(layer.weight_quantizer, Split)
    }
    assert found == {
        "up_blocks.0.resnets.0": (256, 512),
        "up_blocks.0.resnets.1": (256, 512),
        "up_blocks.0.resnets.2": (256, 512),
        "up_blocks.1.resnets.0": (256, 512),
        "up_blocks.1.resnets.1": (256, 512),
        "up_blocks.1.resnets.2": (256, 512),
        "up_blocks.2.resnets.0": (256, 512),
        "up_blocks.2.resnets.1": (256, 512),
        "up_blocks.2.resnets.2": (256, 384),
        "up_blocks.3.resnets.0": (256, 384),
        "up_blocks.3.resnets.1": (128, 256),
        "up_blocks.3.resnets.2": (128, 256),
    }
    layer = split["up_blocks.3.resnets.0.conv_shortcut"]
    (first, _), (second, _) = layer.weight_parts()
    assert first.scale.shape == second.scale.shape == (8, 1, 1, 1)
    assert not torch.equal(first.scale, second.scale)
    assert isinstance(layer.input_quantizer, Split)
    assert layer.input_quantizer.at == 16
    assert "down_blocks.1.resnets.0.conv_shortcut" in network.layers(), "encoder shortcuts are there, whole"


def test_split_index_is_the_width_of_the_features_before_the_skip(make_unet: Callable[..., UNet2DModel]) -> None:
    """Seen in a call: the first half of a shortcut's input is what the layer below handed up."""
    unet = make_unet(block_out_channels=(8, 24))
    handed_up = {}
    for name in ("up_blocks.0.resnets.0", "up_blocks.1.resnets.0"):
        block = unet.get_submodule(name.rpartition(".resnets.")[0])
        block.register_forward_pre_hook(
            lambda _m, args, named, name=name: handed_up.update(
                {name: (args[0] if args else named["hidden_states"]).shape[1]}
            ),
            with_kwargs=True,
        )
    recipe = Recipe(Bits(4, 8), QuantizerSettings(split_shortcuts=True), 1, 1)
    network = QuantizedNetwork(unet, recipe, EXAMPLE)
    for name, width in handed_up.items():
        quantizer = network.layers()[f"{name}.conv_shortcut"].weight_quantizer
        assert isinstance(quantizer, Split)
        assert quantizer.at == width


def test_conditional_unet() -> None:
    """Cross-attention, feed-forward and projections: off it is exact, and it comes back from its export."""

    def build() -> QuantizedNetwork:
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=2,
            cross_attention_dim=12,
            norm_num_groups=4,
        ).eval()
        originals.append(unet(X, T, context).sample)
        return QuantizedNetwork(unet, Recipe(Bits(4, 4), QuantizerSettings(), 1, 1), (X[:1], T[:1], context[:1]))

    context = torch.randn(4, 5, 12, generator=torch.Generator().manual_seed(1))
    originals: list[Tensor] = []
    with torch.no_grad():
        network = build()
        network.set_step(0)
        with network.quantizing(weights=False, activations=False):
            torch.testing.assert_close(network(X, T, context).sample, originals[0], atol=1e-5, rtol=1e-5)
        with calibrating(network):
            network(X, T, context)
        quantized = network(X, T, context).sample
        assert 0.01 < distance(quantized, originals[0]) < 1
        other = build()
        other.set_step(0)
        storage.restore(other, storage.export(network))
        assert torch.equal(other(X, T, context).sample, quantized)
    assert network.account()["full_precision_layers"] == 0
