"""TFMQ-DM: temporal features are reconstructed first and stay, and every sampling step has ranges of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor
from torch.nn.functional import cosine_similarity, silu

from quest import architectures
from quest.architectures.unet import TemporalBlock
from quest.artifacts import load_tensors
from quest.config.dataset import DatasetSettings
from quest.config.method import Rounding
from quest.config.values import Bits
from quest.deploy.start import recipe as make_recipe
from quest.diffusion import denoiser as denoisers
from quest.diffusion.denoiser import Denoiser
from quest.learning import reconstruction
from quest.learning.calibration import Calibration
from quest.learning.finetuning import running_ranges
from quest.learning.reconstruction import Unit
from quest.methods import tfmq_dm
from quest.quantization.network import QuantizedNetwork
from quest.quantization.policy import FULL
from quest.quantization.roles import Role
from quest.stages import reconstruct

CPU = torch.device("cpu")
Make = Callable[..., QuantizedNetwork]
MakeSettings = Callable[..., DatasetSettings]
TEMPORAL = (Role.TIME_MLP, Role.TIME_PROJECTION)


@pytest.fixture
def paper_network(denoiser: Denoiser, settings: DatasetSettings) -> QuantizedNetwork:
    """The tiny network as the paper quantizes it."""
    bits = Bits(4, 4)
    recipe = make_recipe(settings, bits, 4, tfmq_dm.paper_policy(bits, architectures.of(denoiser.network).places()))
    return QuantizedNetwork(denoiser.network, recipe, denoiser.example())


def codes(network: QuantizedNetwork, *roles: Role) -> dict[str, Tensor]:
    return {
        name: quantizer.codes(weight)
        for name, layer in network.layers().items()
        if layer.role in roles
        for quantizer, weight in layer.weight_parts()
    }


def features(network: QuantizedNetwork, timesteps: Tensor) -> Tensor:
    """TIB(t) of each timestep, (timesteps, Σ channels)."""
    with torch.no_grad():
        return TemporalBlock(network.network)(network.network.time_proj(timesteps))  # type: ignore[operator]


def test_the_temporal_unit_comes_first_and_takes_all_that_depends_on_the_timestep(make_quantized: Make) -> None:
    network = make_quantized(calibrated=False)
    first, *others = reconstruction.units(network, "temporal")
    assert list(first.layers) == [n for n, layer in network.layers().items() if layer.role in TEMPORAL]
    blocks = [unit for unit in reconstruction.units(network) if not unit.name.startswith("time_embedding")]
    assert [unit.name for unit in others] == [unit.name for unit in blocks]
    for unit, block in zip(others, blocks, strict=True):
        assert set(block.layers) - set(unit.layers) == {n for n in block.layers if n.endswith("time_emb_proj")}
    parts = [name for unit in (first, *others) for name in unit.parts()]
    assert sorted(parts) == sorted(f"{name}.weight.0" for name in network.layers())


def test_the_temporal_block_is_what_the_network_adds_to_its_features(
    make_quantized: Make, calibration: Calibration
) -> None:
    network = make_quantized(sets=4)
    seen: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Tensor) -> None:
        seen.append(output)

    for name, layer in network.layers().items():
        if name.endswith("time_emb_proj"):
            layer.register_forward_hook(keep)
    predict = denoisers.predictor(network)
    with torch.no_grad():
        predict(calibration.x[1], calibration.sampler.calls()[1])
    found = features(network, calibration.timesteps[1:2])
    # The network's order of registration is not that of its calls.
    told = torch.cat(seen[: len(seen) // 2], 1)[0].sort().values
    torch.testing.assert_close(told, found[0].sort().values, rtol=1e-4, atol=1e-6)  # sums in another order


def test_a_class_in_the_time_embedding_is_refused(make_unet: Callable[..., UNet2DModel]) -> None:
    with pytest.raises(ValueError, match="depends on a class or another condition as well"):
        TemporalBlock(make_unet(num_class_embeds=10))


def test_its_loss_is_that_of_the_paper(make_quantized: Make, calibration: Calibration) -> None:
    """Squared error of the features of every block, summed over channels and blocks, averaged over the batch."""
    network = make_quantized("w3a8", calibrated=False)
    unit = reconstruction.units(network, "temporal")[0]
    samples = calibration.samples(8)
    cache = reconstruction.record(network, unit, samples, 1000, weights=True)
    with network.quantizing(weights=False, activations=False):
        full = features(network, calibration.timesteps)
    with network.quantizing(weights=True, activations=False):
        error = (features(network, calibration.timesteps) - full).square().sum(1).mean().item()
        assert reconstruction.error(unit, cache, torch.arange(cache.samples)) == pytest.approx(error, rel=1e-4)


def test_later_units_leave_the_temporal_features_as_they_are(
    monkeypatch: pytest.MonkeyPatch, make_quantized: Make, calibration: Calibration, settings: DatasetSettings, tmp_path
) -> None:
    network = make_quantized("w3a8", calibrated=False)
    learn = reconstruction.learn_unit
    states: list[dict[str, Tensor]] = []

    def spy(unit: Unit, *rest: Any) -> dict[str, float]:
        losses = learn(unit, *rest)
        states.append(codes(network, *TEMPORAL))
        return losses

    monkeypatch.setattr(reconstruction, "learn_unit", spy)
    progress = reconstruction.Progress(tmp_path / "progress.safetensors", {})
    short = settings.reconstruction.model_copy(update={"lr": 0.3})
    before = codes(network, *TEMPORAL)
    reconstruction.reconstruct(network, calibration, short, 0, progress, "temporal")
    assert any(not torch.equal(states[0][name], before[name]) for name in before), "the first unit learns them"
    for state in states[1:]:
        assert all(torch.equal(state[name], states[0][name]) for name in state)


def test_temporal_features_come_closer_than_by_rounding_to_nearest(
    make_quantized: Make, calibration: Calibration, make_settings: MakeSettings
) -> None:
    """For every timestep and block: what the authors plot."""
    settings = make_settings(reconstruction={"iterations": 300, "lr": 3e-2}).reconstruction
    network = make_quantized("w3a8", calibrated=False)
    unit = reconstruction.units(network, "temporal")[0]
    blocks = [layer.weight.shape[0] for name, layer in network.layers().items() if name.endswith("time_emb_proj")]

    def similarity() -> Tensor:
        return torch.stack(
            [
                cosine_similarity(mine, other, dim=1)
                for mine, other in zip(
                    features(network, calibration.timesteps).split(blocks, 1), full.split(blocks, 1), strict=True
                )
            ]
        )

    with network.quantizing(weights=False, activations=False):
        full = features(network, calibration.timesteps)
    with network.quantizing(weights=True, activations=False):
        nearest = similarity()
        cache = reconstruction.record(network, unit, calibration.samples(8), 1000, weights=True)
        losses = reconstruction.learn_unit(unit, cache, settings, torch.Generator().manual_seed(0))
        learned = similarity()
    assert losses["learned"] < 0.5 * losses["nearest"]
    assert learned.mean() > nearest.mean()
    assert (learned > nearest).float().mean() > 0.8


def test_killed_and_resumed_is_the_same_file_and_of_another_grouping(
    monkeypatch: pytest.MonkeyPatch,
    make_quantized: Make,
    settings: DatasetSettings,
    denoiser: Denoiser,
    model_file: Path,
    calibration_file: Path,
    tmp_path: Path,
) -> None:
    whole, resumed = tmp_path / "whole.safetensors", tmp_path / "resumed.safetensors"
    reconstruct.run("tiny", settings, model_file, 4, 0, "temporal", "everything", calibration_file, whole, CPU)
    learn = reconstruction.learn_unit
    learned: list[str] = []

    def killed(unit: Unit, *rest: Any) -> dict[str, float]:
        if len(learned) == 3:
            raise KeyboardInterrupt
        learned.append(unit.name)
        return learn(unit, *rest)

    monkeypatch.setattr(reconstruction, "learn_unit", killed)
    with pytest.raises(KeyboardInterrupt):
        reconstruct.run("tiny", settings, model_file, 4, 0, "temporal", "everything", calibration_file, resumed, CPU)
    assert learned[0] == "temporal"
    monkeypatch.setattr(reconstruction, "learn_unit", learn)
    reconstruct.run("tiny", settings, model_file, 4, 0, "temporal", "everything", calibration_file, resumed, CPU)
    assert resumed.read_bytes() == whole.read_bytes()
    assert load_tensors(whole, "reconstruction").manifest.settings["grouping"] == "temporal"

    network = make_quantized("w4a8", calibrated=False)
    with pytest.raises(ValueError, match="reconstructed with grouping = temporal, expected blocks"):
        reconstruction.apply(whole, network, denoiser, Rounding("blocks", "everything"))
    reconstruction.apply(whole, network, denoiser, Rounding("temporal", "everything"))


def test_every_sampling_step_has_a_range(
    make_quantized: Make, calibration: Calibration, settings: DatasetSettings
) -> None:
    network = make_quantized("w4a8", calibrated=False, sets=4)
    weights = codes(network, *Role)
    notes = tfmq_dm.quantize(network, calibration, settings.methods.tfmq_dm, 0).notes
    assert notes == {"passes": {"forward": 4 * (4 + 8)}}
    assert all(torch.equal(weights[name], each) for name, each in codes(network, *Role).items()), "nothing is trained"
    different = 0
    for site in network.sites().values():
        assert site.scale.shape[0] == 4
        assert bool(site.calibrated.all())
        assert not site._forward_pre_hooks
        different += len(torch.unique(site.scale.flatten())) > 1
    assert different > 0.9 * len(network.sites())
    outputs = []
    for step in (0, 3):
        network.set_step(step)
        with torch.no_grad():
            outputs.append(network(calibration.x[0], torch.full((8,), 501)).sample)
    assert not torch.equal(*outputs), "the tables switch with the step"


def test_running_range(make_quantized: Make) -> None:
    """The first batch chooses by error, the others by the moving extremes, which the first started."""
    network = make_quantized("w4a8", calibrated=False, sets=4)
    site = network.sites()["conv_in.input_quantizer"]
    network.set_step(2)
    batches = [torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(i)) * (i + 1) for i in range(3)]
    low, high = (f(batches[0]).item() for f in (torch.min, torch.max))
    with torch.no_grad(), running_ranges(network, 0.9, first="mse"):
        site(batches[0])
        assert site.scale[2].item() <= (high - low) / 255 + 1e-6
        for batch in batches[1:]:
            low, high = 0.9 * low + 0.1 * batch.min().item(), 0.9 * high + 0.1 * batch.max().item()
            seen = site(batch)
            assert len(seen.unique()) <= 256
            assert seen.max() <= high + 1e-2, "quantized with the new range"
    assert site.scale[2].item() == pytest.approx((high - low) / 255, rel=1e-5)
    assert site.zero_point[2].item() == round(-low / (high - low) * 255)
    assert site.calibrated.tolist() == [False, False, True, False]


def test_the_range_of_a_projections_input_is_exact(
    paper_network: QuantizedNetwork, calibration: Calibration, make_settings: MakeSettings
) -> None:
    """It is one vector for each timestep, whatever the samples."""
    settings = make_settings(methods={"tfmq_dm": {"batch_size": 2}}).methods.tfmq_dm
    tfmq_dm.quantize(paper_network, calibration, settings, 0)
    network: Any = paper_network.network
    for step, timestep in enumerate(calibration.timesteps):
        paper_network.set_step(step)
        with torch.no_grad():
            x = silu(network.time_embedding(network.time_proj(timestep[None])))[0]
        for name, site in paper_network.sites().items():
            if "time_emb_proj" in name:  # a scale for each channel, so a range of one value and zero
                torch.testing.assert_close(site.scale[step, 0], (x.clamp(min=0) - x.clamp(max=0)) / 15)


def test_policy_of_the_paper(paper_network: QuantizedNetwork) -> None:
    layers = paper_network.layers()
    full = set(architectures.of(UNet2DModel.from_config(paper_network.network.config)).roles()) - set(layers)  # type: ignore[attr-defined]
    assert {name for name in full if "shortcut" not in name and "downsampler" not in name} == {
        *("conv_in", "conv_out", "time_embedding.linear_1"),
    }
    sites = set(paper_network.sites())
    weights_only = {"time_embedding.linear_2", "down_blocks.0.resnets.0.conv1"}
    assert {name for name in layers if f"{name}.input_quantizer" not in sites} == weights_only
    assert sites == {f"{name}.input_quantizer" for name in set(layers) - weights_only}


@pytest.mark.parametrize(
    ("name", "candidates", "heads"), [("stable-diffusion-v1.4", 265, 22), ("ddpm-cifar10", 97, 22)]
)
def test_layers_of_the_paper(name: str, candidates: int, heads: int, published_unet: Callable[[str], Any]) -> None:
    """The counts of the released code, of which three layers are left out again."""
    model = published_unet(name)
    policy = tfmq_dm.paper_policy(Bits(4, 8), architectures.of(model).places())
    bits = {name: policy.bits(name, role, Bits(4, 8)) for name, role in architectures.of(model).roles().items()}
    assert sum(each != FULL for each in bits.values()) == candidates - 3
    assert [name for name, each in bits.items() if each == Bits(4, 32)] == [
        *("time_embedding.linear_2", "down_blocks.0.resnets.0.conv1"),
    ]
    assert sum(name.endswith("time_emb_proj") for name in TemporalBlock(model).names) == heads
