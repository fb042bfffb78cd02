"""Each family of published networks, a miniature with random weights, from roles to a checkpoint and packed layers."""

from __future__ import annotations

import copy
import fnmatch
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from quest import architectures, methods
from quest.architectures import Inputs
from quest.artifacts import Manifest
from quest.config.dataset import DatasetSettings
from quest.config.learning import ReconstructionSettings
from quest.config.quantizer import QuantizerSettings
from quest.config.sampling import SamplerSettings
from quest.config.values import Bits
from quest.deploy import checkpoints, start
from quest.deploy.checkpoints import Checkpoint
from quest.deploy.export import export
from quest.deploy.packed import assembly
from quest.deploy.packed.description import Description
from quest.deploy.quantized import QuantizedModel
from quest.diffusion import denoiser as denoisers
from quest.diffusion import sampling
from quest.diffusion.conditioners import ClassLabels
from quest.diffusion.denoiser import Denoiser
from quest.learning import calibration as calibrations
from quest.learning import recomputing, reconstruction
from quest.quantization.account import account
from quest.quantization.network import QuantizedNetwork
from quest.quantization.quantizers import calibrating
from quest.quantization.recipe import Recipe
from quest.quantization.roles import Role, is_layer
from tests.architectures.miniatures import MINIATURES

CPU = torch.device("cpu")
FAMILIES = pytest.mark.parametrize("family", MINIATURES)
TIMESTEPS = [999, 400]  # of two sampling steps


def recipe(bits: str) -> Recipe:
    return Recipe(Bits.parse(bits), QuantizerSettings(weight_search="max", activation_search="max"), 1, len(TIMESTEPS))


def on_grids(family: str, network: nn.Module, bits: str) -> QuantizedNetwork:
    """A network of a family on grids, calibrated on one batch."""
    mini = MINIATURES[family]
    known = architectures.of(network)
    quantized = QuantizedNetwork(network, recipe(bits), known.arguments(mini.told(1)))
    quantized.set_step(0)
    with torch.no_grad(), calibrating(quantized):
        architectures.predict(quantized, mini.told(3))
    return quantized


@cache
def quantized(family: str, bits: str) -> QuantizedNetwork:
    """Shared: a test leaves it as it was."""
    return on_grids(family, MINIATURES[family].network(), bits)


@cache
def expected(family: str) -> Tensor:
    """What diffusers' own network gives, as its pipeline calls it."""
    mini = MINIATURES[family]
    with torch.no_grad():
        return mini.call(mini.network(), mini.told(3)).sample


def error(family: str, bits: str) -> float:
    """Of the output, relative to its size."""
    mini = MINIATURES[family]
    with torch.no_grad():
        found = mini.call(quantized(family, bits), mini.told(3)).sample
    return float((found - expected(family)).norm() / expected(family).norm())


@FAMILIES
def test_off_it_is_diffusers_own_to_the_last_bit(family: str) -> None:
    mini, network = MINIATURES[family], quantized(family, "w4a4")
    with torch.no_grad(), network.quantizing(weights=False, activations=False):
        assert torch.equal(mini.call(network, mini.told(3)).sample, expected(family))


@FAMILIES
def test_it_is_called_as_its_pipeline_calls_it(family: str) -> None:
    mini, network = MINIATURES[family], MINIATURES[family].network()
    told = mini.told(3)
    with torch.no_grad():
        found, output = architectures.predict(network, told), expected(family)
    if family.startswith("flux"):  # its pipeline makes an image of tokens at the end
        output = output.view(3, 4, 4, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(3, 4, 8, 8)
    assert found.shape == told.x.shape
    assert torch.equal(found, output[:, : told.x.shape[1]])


@FAMILIES
def test_a_blank_call_has_the_shapes_of_a_real_one(family: str) -> None:
    known, real = architectures.of(MINIATURES[family].network()), MINIATURES[family].told(1)
    blank = known.blank()
    assert blank.x.shape == real.x.shape
    assert (blank.context is None, known.conditional) == (real.context is None, True)
    if blank.context is not None and real.context is not None:
        assert (blank.context.dtype, blank.context.shape[2:]) == (real.context.dtype, real.context.shape[2:])
    shapes = {name: tensor.shape for name, tensor in (real.added or {}).items() if name != "encoder_attention_mask"}
    assert {name: tensor.shape for name, tensor in (blank.added or {}).items()} == shapes


@FAMILIES
def test_every_layer_and_product_is_on_a_grid(family: str) -> None:
    network, full = quantized(family, "w8a8"), MINIATURES[family].network()
    assert list(network.layers()) == [name for name, module in full.named_modules() if is_layer(module)]
    attentions = network.architecture.attentions()
    operands = {f"{name}.processor.{each}" for name in attentions for each in ("q", "k", "v", "probabilities")}
    assert operands == {name for name in network.sites() if ".processor." in name}
    assert attentions
    found, plain = network.account(), account(full, network.example)
    assert found["full_precision_layers"] == 0
    # Were one multiplication left out, the sums would not be as 8 · 8 to 32 · 32.
    assert found["gbops"] * 16 == pytest.approx(plain["gbops"], rel=1e-12)


@FAMILIES
def test_eight_bits_are_close_and_four_less_so(family: str) -> None:
    assert 0 < error(family, "w8a8") < 0.02
    assert 3 * error(family, "w8a8") < error(family, "w4a4") < 0.25


@dataclass
class Told:
    """Inputs of a miniature, as calibration data has them."""

    all: Inputs

    def __len__(self) -> int:
        return len(self.all.x)

    def inputs(self, batch: Tensor) -> Inputs:
        context, added = self.all.context, self.all.added
        return Inputs(
            self.all.x[batch],
            self.all.timesteps[batch],
            None if context is None else context[batch],
            None if added is None else {name: each[batch] for name, each in added.items()},
        )


@FAMILIES
def test_a_block_is_learned(family: str) -> None:
    """The last block with attention: of all that a call passes on, what depends on the sample is kept by sample."""
    network = copy.deepcopy(quantized(family, "w4a4"))
    units = reconstruction.units(network)
    assert sorted(key for unit in units for key in unit.layers) == sorted(network.layers())
    unit = next(each for each in reversed(units) if any(key.endswith("to_k") for key in each.layers))
    data: Any = Told(MINIATURES[family].told(6))
    settings = ReconstructionSettings(iterations=40, batch_size=4, lr=3e-2, warmup=0.2)
    with network.quantizing(weights=True, activations=False):
        cache = reconstruction.record(network, unit, data, 64, weights=True)
        losses = reconstruction.learn_unit(unit, cache, settings, torch.Generator().manual_seed(0))
    assert losses["learned"] < losses["nearest"]


@FAMILIES
def test_what_is_recorded_of_a_unit_needs_no_run_from_the_start(family: str) -> None:
    network = quantized(family, "w4a4")
    units = reconstruction.units(network)
    data: Any = Told(MINIATURES[family].told(6))
    with network.quantizing(weights=True, activations=False), network.frozen():
        recorder = reconstruction.Recorder(network, units, data, 64, weights=True)
        assert recorder._walks[0] is not None
        for number, unit in enumerate(units):
            if "resolution_embedder" in unit.name:  # a row for each number of a sample, which a cache does not take
                continue
            all_samples = torch.arange(6)
            found = recorder.record(number).take(all_samples)
            expected = reconstruction.record(network, unit, data, 64, weights=True).take(all_samples)
            for ours, theirs in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
                assert torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs


@FAMILIES
def test_a_checkpoint_gives_the_same_again(family: str, tmp_path: Path) -> None:
    mini = MINIATURES[family]
    denoisers.save(tmp_path / "model", Denoiser(mini.network(), DDIMScheduler()), Manifest(kind="model"))
    model = denoisers.load(tmp_path / "model")
    network = on_grids(family, model.network, "w4a4")
    sampler = SamplerSettings(steps=len(TIMESTEPS))
    checkpoint = Checkpoint(network, "nearest", sampler, inputs={"model": model.sha256})
    checkpoints.save(tmp_path / "checkpoint", checkpoint)
    loaded = checkpoints.load(tmp_path / "checkpoint", denoisers.load(tmp_path / "model")).network
    loaded.set_step(0)
    with torch.no_grad():
        found, before = (mini.call(each, mini.told(3)).sample for each in (loaded, network))
    assert torch.equal(found, before)


@FAMILIES
def test_a_packed_network_gives_the_same(family: str) -> None:
    """Its tables follow the timestep of a call, wherever that stands among the arguments."""
    mini, network = MINIATURES[family], quantized(family, "w4a4")
    fields, tensors = assembly.take_apart(network, TIMESTEPS, None)
    description = Description(bits="w4a4", method="nearest", **fields)
    packed = mini.make().eval()
    assembly.assemble(packed, description)
    packed.load_state_dict(tensors)
    told = mini.told(1)._replace(timesteps=torch.tensor([400]))
    with torch.no_grad():
        found, by_name = architectures.predict(packed, told), mini.call(packed, told).sample
        torch.testing.assert_close(found, architectures.predict(network, told), atol=1e-5, rtol=0)
        torch.testing.assert_close(by_name, mini.call(network, told).sample, atol=1e-5, rtol=0)
    tables = packed.get_submodule(assembly.TABLES)
    assert int(tables.get_buffer("step")) == 1


def test_no_pipeline_is_written_that_could_not_call_it(tmp_path: Path) -> None:
    for family in ("sd3", "sd2"):  # one is no U-Net, the other has lost its encoder of prompts
        around = Denoiser(MINIATURES[family].network(), DDIMScheduler())
        checkpoint = Checkpoint(quantized(family, "w4a4"), "nearest", SamplerSettings(steps=len(TIMESTEPS)))
        with pytest.raises(ValueError, match=r"no pipeline is written here for a (SD3Transformer|UNet)2D"):
            export(QuantizedModel(checkpoint, around), tmp_path / family)
        assert list(tmp_path.iterdir()) == []


@FAMILIES
def test_what_depends_on_the_timestep_alone(family: str) -> None:
    """Of U-Nets the embedding and its projections, of PixArt-Σ its one norm, of DiT the embedding in each block, to
    which the class is added before the projections; elsewhere another condition is in it."""
    network = quantized(family, "w4a4")
    both = {Role.TIME_MLP, Role.TIME_PROJECTION}
    roles = {"dit": {Role.TIME_MLP}, "sd2": both, "pruned": both, "pixart-sigma": both}
    if family in roles:
        unit, *others = reconstruction.units(network, "temporal")
        assert {layer.role for layer in unit.layers.values()} == roles[family]
        assert sorted(name for each in (unit, *others) for name in each.layers) == sorted(network.layers())
        data: Any = Told(MINIATURES[family].told(6))
        cache = reconstruction.record(network, unit, data, 64, weights=False)
        with torch.no_grad(), network.quantizing(weights=False, activations=False):
            assert reconstruction.error(unit, cache, torch.arange(6)) == 0
    else:
        with pytest.raises(ValueError, match="timestep alone"):
            reconstruction.units(network, "temporal")


@pytest.mark.parametrize("family", ["dit", "class-unet"])
def test_classes_go_the_whole_way(family: str, make_settings: Callable[..., DatasetSettings]) -> None:
    """Calibrated under guidance, its rounding learned, trained by a method, sampled from: the context is the class."""
    settings = make_settings(
        sampler={"steps": 4, "guidance_scale": 2.0},
        calibration={"samples_per_step": 4},
        condition={"classes": 10},
        reconstruction={"iterations": 3},
    )
    method = "quest"
    model = Denoiser(MINIATURES[family].network(), DDIMScheduler(clip_sample=False), conditioner=ClassLabels(10))
    data = calibrations.record(model, settings, 0, CPU)
    assert data.contexts is not None
    assert data.contexts.dtype == torch.long
    copied = replace(model, network=copy.deepcopy(model.network))
    network = QuantizedNetwork(copied.network, start.recipe_of(settings, copied, method, Bits(8, 8)), copied.example())
    reconstruction.reconstruct(network, data, settings.reconstruction, 0, reconstruction.Progress())
    outcome = methods.get(method).quantize(network, data, settings.method(method), 0)
    found, full = (
        sampling.draw(model, each, settings, 0, range(3), CPU, outcome.correction if each is network else None)
        for each in (network, model.network)
    )
    assert found.shape == (3, model.shape[0], 8, 8)
    assert (found.float() - full.float()).abs().mean() < 8  # of 255


@FAMILIES
def test_places_are_layers(family: str) -> None:
    roles = architectures.of(MINIATURES[family].network()).roles()
    places = architectures.of(MINIATURES[family].network()).places()
    for pattern in places.time_mlp:
        assert {roles[name] for name in fnmatch.filter(roles, pattern)} == {Role.TIME_MLP}
    assert roles[places.first_block] in (Role.CONVOLUTION, Role.ATTENTION_Q)


def test_a_middle_that_is_not_there_ends_where_the_encoder_does() -> None:
    network = MINIATURES["pruned"].network()
    assert architectures.of(network).split_at("up_blocks.0.resnets.0.conv_shortcut") == 16


def test_what_is_missing_is_named() -> None:
    known, told = architectures.of(MINIATURES["flux"].network()), MINIATURES["flux"].told(1)
    assert told.added is not None
    lacking = told._replace(added={"guidance": told.added["guidance"]})
    with pytest.raises(
        ValueError, match=r"told pooled_projections, guidance; pooled_projections missing .*\(guidance\)"
    ):
        known.arguments(lacking)


def test_layers_without_a_role_come_with_a_pattern() -> None:
    """As of SD's older cousins: a context's keys beside the image's own."""
    with torch.device("meta"):
        network = UNet2DConditionModel(
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("SimpleCrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D"),
            up_block_types=("SimpleCrossAttnUpBlock2D", "UpBlock2D"),
            mid_block_type=None,
            cross_attention_dim=12,
            norm_num_groups=4,
            encoder_hid_dim=6,
            addition_embed_type="text",
            addition_embed_type_num_heads=2,
        )
    message = (
        r"add_embedding\.pool\.k_proj \(Linear\), .*to begin with: "
        r"\{\"add_embedding\.pool\.k_proj\": \"attention_k\", .*\"add_embedding\.proj\": \"projection\""
    )
    with pytest.raises(ValueError, match=message) as raised:
        architectures.of(network).roles()
    proposed = json.loads(str(raised.value).partition("to begin with: ")[2])
    found = architectures.of(network).roles({pattern: Role(role) for pattern, role in proposed.items()})
    assert list(found) == [name for name, module in network.named_modules() if is_layer(module)]


@FAMILIES
def test_blocks_that_are_computed_again(family: str) -> None:
    """Whatever a block is given and gives: the same gradients, for fewer bytes."""
    network, told = copy.deepcopy(quantized(family, "w4a8")), MINIATURES[family].told(2)
    weights = [layer.weight.requires_grad_(True) for layer in network.layers().values()]

    def loss() -> Tensor:
        return architectures.predict(network, told).square().sum()

    kept = recomputing.measure(network, loss)
    assert kept.bytes(list(kept.inside)) < 0.7 * kept.bytes()
    found = []
    for again in ((), kept.inside):
        with recomputing.recomputed(network, again):
            value = loss()
        found.append(torch.autograd.grad(value, weights, materialize_grads=True))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
