"""Learned rounding: units, what it gains, and that a killed run ends with the very same file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quest.artifacts import load_tensors
from quest.config.dataset import DatasetSettings
from quest.config.learning import ReconstructionSettings
from quest.config.method import Rounding
from quest.diffusion import denoiser as denoisers
from quest.diffusion.denoiser import Denoiser
from quest.learning import reconstruction
from quest.learning.adaround import LearnedRounding
from quest.learning.calibration import Calibration, Samples
from quest.learning.reconstruction import Cache, Unit
from quest.quantization.layers import QuantizedLayer
from quest.quantization.network import QuantizedNetwork
from quest.quantization.rounding import Fixed
from quest.stages import reconstruct

CPU = torch.device("cpu")
ROUNDING = Rounding("blocks", "everything")
Make = Callable[..., QuantizedNetwork]
MakeSettings = Callable[..., DatasetSettings]


@pytest.fixture(scope="module")
def reconstruction_file(
    tmp_path_factory: pytest.TempPathFactory, settings: DatasetSettings, model_file: Path, calibration_file: Path
) -> Path:
    """The rounding of the tiny model at 4 bits, in one go."""
    path = tmp_path_factory.mktemp("reconstruction") / "w4.safetensors"
    reconstruct.run("tiny", settings, model_file, 4, 0, "blocks", "everything", calibration_file, path, CPU)
    return path


def learn(
    network: QuantizedNetwork, unit: Unit, data: Samples, settings: ReconstructionSettings, cache_mib: int = 1000
) -> tuple[Cache, dict[str, float]]:
    """What `reconstruct` does with one unit."""
    with network.quantizing(weights=True, activations=False):
        cache = reconstruction.record(network, unit, data, cache_mib, weights=True)
        return cache, reconstruction.learn_unit(unit, cache, settings, torch.Generator().manual_seed(0))


def unit_called(network: QuantizedNetwork, name: str) -> Unit:
    return {unit.name: unit for unit in reconstruction.units(network)}[name]


def test_units_are_in_execution_order(make_quantized: Make) -> None:
    network = make_quantized(calibrated=False)
    names = [unit.name for unit in reconstruction.units(network)]
    assert names == [
        "time_embedding.linear_1",
        "time_embedding.linear_2",
        "conv_in",
        "down_blocks.0.resnets.0",
        "down_blocks.0.downsamplers.0.conv",
        "down_blocks.1.resnets.0",
        "down_blocks.1.attentions.0",
        "mid_block.resnets.0",
        "mid_block.attentions.0",
        "mid_block.resnets.1",
        "up_blocks.0.resnets.0",
        "up_blocks.0.attentions.0",
        "up_blocks.0.resnets.1",
        "up_blocks.0.attentions.1",
        "up_blocks.0.upsamplers.0.conv",
        "up_blocks.1.resnets.0",
        "up_blocks.1.resnets.1",
        "conv_out",
    ]


@pytest.mark.parametrize("split", [False, True])
def test_each_weight_is_in_one_unit(make_quantized: Make, split: bool) -> None:
    network = make_quantized(calibrated=False, split_shortcuts=split)
    parts = [name for unit in reconstruction.units(network) for name in unit.parts()]
    expected = [
        f"{name}.weight.{part}" for name, layer in network.layers().items() for part in range(len(layer.weight_parts()))
    ]
    assert sorted(parts) == sorted(expected)
    assert split == (len(expected) > len(network.layers()))


def test_learned_beats_nearest(
    make_quantized: Make, calibration: Calibration, make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = make_settings(
        reconstruction={"iterations": 60, "lr": 2e-2, "batch_size": 8, "samples": 32}
    ).reconstruction
    network = make_quantized("w3a8", calibrated=False)
    samples = calibration.samples(8)

    def outputs(weights: bool) -> Tensor:
        with torch.no_grad(), network.quantizing(weights=weights, activations=False):
            return network(samples.x, samples.timesteps).sample

    expected, nearest = outputs(False), outputs(True)
    progress = reconstruction.Progress(tmp_path / "progress.safetensors", {})
    losses = reconstruction.reconstruct(network, calibration, settings, 0, progress)
    assert list(losses) == [unit.name for unit in reconstruction.units(network)]
    assert sum(unit["learned"] for unit in losses.values()) < 0.8 * sum(unit["nearest"] for unit in losses.values())
    assert (outputs(True) - expected).norm() < 0.95 * (nearest - expected).norm()
    for layer in network.layers().values():
        for quantizer, weight in layer.weight_parts():
            assert isinstance(quantizer.rounding, Fixed), "hard rounding at the end"
            floor = torch.floor(quantizer.ratio(weight))
            step = quantizer.codes(weight) - quantizer.zero_point - floor
            inside = (quantizer.codes(weight) > 0) & (quantizer.codes(weight) < 7)
            assert set(step[inside].unique().tolist()) <= {0.0, 1.0}, "each weight to one of its two neighbours"


def test_inputs_come_from_quantized_weights_and_targets_from_full_precision(
    make_quantized: Make, calibration: Calibration
) -> None:
    network = make_quantized("w2a8", calibrated=False)
    samples = calibration.samples(8)
    unit = unit_called(network, "mid_block.resnets.0")
    seen: dict[bool, tuple[Tensor, Tensor]] = {}
    for weights in (True, False):
        handle = unit.module.register_forward_hook(
            lambda _m, args, output, weights=weights: seen.update({weights: (args[0], output)})
        )
        with torch.no_grad(), network.quantizing(weights=weights, activations=False):
            network(samples.x, samples.timesteps)
        handle.remove()
    cache = reconstruction.record(network, unit, samples, 1000, weights=True)
    args, _, target = cache.take(torch.arange(len(samples)))
    assert torch.equal(args[0], seen[True][0])
    assert torch.equal(target, seen[False][1])
    assert not torch.equal(args[0], seen[False][0])


@pytest.mark.parametrize("kept", [1, 7, 17])
def test_killed_and_resumed_is_the_same_file(
    monkeypatch: pytest.MonkeyPatch,
    reconstruction_file: Path,
    settings: DatasetSettings,
    model_file: Path,
    calibration_file: Path,
    tmp_path: Path,
    kept: int,
) -> None:
    path = tmp_path / "w4.safetensors"
    learn = reconstruction.learn_unit
    learned: list[str] = []

    def killed_after(limit: int):
        def run(unit: Unit, *rest: Any) -> dict[str, float]:
            if len(learned) == limit:
                raise KeyboardInterrupt
            learned.append(unit.name)
            return learn(unit, *rest)

        return run

    monkeypatch.setattr(reconstruction, "learn_unit", killed_after(kept))
    with pytest.raises(KeyboardInterrupt):
        reconstruct.run("tiny", settings, model_file, 4, 0, "blocks", "everything", calibration_file, path, CPU)
    assert not path.exists()
    torch.manual_seed(1234)  # nothing hangs on the global generator
    monkeypatch.setattr(reconstruction, "learn_unit", killed_after(1000))
    reconstruct.run("tiny", settings, model_file, 4, 0, "blocks", "everything", calibration_file, path, CPU)
    assert len(learned) == len(set(learned)) == 18, "no unit is learned twice"
    assert path.read_bytes() == reconstruction_file.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == [path.name], "nothing is left beside it"


def test_progress_of_another_run_is_not_used(
    make_quantized: Make, calibration: Calibration, settings: DatasetSettings, tmp_path: Path
) -> None:
    path = tmp_path / "progress.safetensors"
    network = make_quantized(calibrated=False)
    progress = reconstruction.Progress(path, {"seed": 0})
    unit = reconstruction.units(network)[0]
    cache, losses = learn(network, unit, calibration.samples(2), settings.reconstruction)
    progress.add(unit, losses, cache)
    assert set(reconstruction.Progress(path, {"seed": 0}).losses) == {unit.name}
    assert not reconstruction.Progress(path, {"seed": 1}).losses
    progress.remove()
    assert not path.exists()


def test_seed_matters(
    reconstruction_file: Path, settings: DatasetSettings, model_file: Path, calibration_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "w4.safetensors"
    reconstruct.run("tiny", settings, model_file, 4, 1, "blocks", "everything", calibration_file, path, CPU)
    tensors, others = (load_tensors(file, "reconstruction").tensors for file in (path, reconstruction_file))
    assert set(tensors) == set(others)
    assert any(not torch.equal(tensors[name], others[name]) for name in tensors)


def test_cache_that_spills_to_the_host_gives_the_same(
    monkeypatch: pytest.MonkeyPatch, make_quantized: Make, calibration: Calibration, settings: DatasetSettings
) -> None:
    monkeypatch.setattr(reconstruction, "_CHUNK", 7)
    results = []
    for mib in (4096, 0):
        network = make_quantized(calibrated=False)
        unit = unit_called(network, "up_blocks.0.resnets.0")
        cache, _ = learn(network, unit, calibration.samples(8), settings.reconstruction, mib)
        assert (cache.host_bytes == 0, cache.device_bytes == 0) == (mib > 0, mib == 0)
        assert cache.host_bytes + cache.device_bytes == 4 * 32 * (32 * 16 + 32 + 16 * 16)
        results.append([quantizer.codes(weight) for quantizer, weight in unit.parts().values()])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize(("mib", "where"), [(4096, "device"), (0, "host")])
def test_the_largest_cache_is_noted_and_outlives_a_kill(
    make_quantized: Make, calibration: Calibration, settings: DatasetSettings, tmp_path: Path, mib: int, where: str
) -> None:
    path, network, samples = tmp_path / "progress.safetensors", make_quantized(calibrated=False), calibration.samples(8)
    short = settings.reconstruction.model_copy(update={"iterations": 1})
    progress = reconstruction.Progress(path, {})
    for name in ("up_blocks.0.resnets.0", "time_embedding.linear_1"):  # the largest one is not the last
        unit = unit_called(network, name)
        cache, losses = learn(network, unit, samples, short, mib)
        progress.add(unit, losses, cache)
    largest = 4 * 32 * (32 * 16 + 32 + 16 * 16) / 2**20
    expected = {"device": 0.0, "host": 0.0} | {where: largest}
    assert progress.notes["cache_mib"] == reconstruction.Progress(path, {}).cache_mib == expected


@pytest.mark.parametrize("budget", [100, 0])
def test_cache_takes_any_samples(budget: int) -> None:
    cache = Cache(budget, 5)
    x, temb = torch.arange(5.0)[:, None], torch.arange(5.0)[:, None] * 10
    for part in (slice(0, 3), slice(3, 5)):
        cache.add(((x[part], 7), {"temb": temb[part], "scale": 2.0}), x[part] * 100)
    args, named, target = cache.take(torch.tensor([4, 0, 4, 2]))
    assert args[1] == 7
    assert named["scale"] == 2.0
    assert args[0].flatten().tolist() == [4, 0, 4, 2]
    assert torch.equal(named["temb"], args[0] * 10)
    assert torch.equal(target, args[0] * 100)
    assert cache.on_device == (budget == 100)
    assert (cache.device_bytes, cache.host_bytes) == ((60, 0) if budget else (0, 60))


def test_rounding_term_is_off_in_warmup_and_ends_at_the_last_beta(make_settings: MakeSettings) -> None:
    settings = make_settings(
        reconstruction={"iterations": 10, "warmup": 0.2, "beta": (20.0, 2.0), "rounding_weight": 0.5}
    ).reconstruction
    weights, betas = reconstruction.penalties(settings)
    assert weights.tolist() == [0] * 2 + [0.5] * 8
    assert betas[2:].tolist() == pytest.approx([20 - 18 * i / 8 for i in range(1, 9)])


def test_rounding_term_drives_to_decisions(
    make_quantized: Make, calibration: Calibration, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided = {}
    decide = LearnedRounding.decide
    for weight in (0.0, 1.0):
        settings = make_settings(
            reconstruction={"iterations": 200, "lr": 3e-2, "rounding_weight": weight, "warmup": 0.0}
        ).reconstruction
        network = make_quantized(calibrated=False)
        unit = reconstruction.units(network)[3]
        soft: list[Tensor] = []

        def spy(self: LearnedRounding, soft: list[Tensor] = soft) -> None:
            soft.append(self.soft())
            decide(self)

        monkeypatch.setattr(LearnedRounding, "decide", spy)
        learn(network, unit, calibration.samples(2), settings)
        decided[weight] = ((soft[0] < 0.05) | (soft[0] > 0.95)).float().mean().item()
    assert decided[1.0] > 0.95 > decided[0.0]


def test_both_halves_of_a_split_layer_are_learned(
    make_quantized: Make, calibration: Calibration, make_settings: MakeSettings
) -> None:
    """The released code regularises only the first."""
    settings = make_settings(reconstruction={"iterations": 40, "warmup": 0.0, "lr": 0.1}).reconstruction
    network = make_quantized(calibrated=False, split_shortcuts=True)
    unit = unit_called(network, "up_blocks.1.resnets.0")
    before = {name: quantizer.codes(weight) for name, (quantizer, weight) in unit.parts().items()}
    learn(network, unit, calibration.samples(2), settings)
    for name, (quantizer, weight) in unit.parts().items():
        assert isinstance(quantizer.rounding, Fixed)
        assert quantizer.rounding.up.shape == quantizer.ratio(weight).shape
        assert not torch.equal(quantizer.codes(weight), before[name]), f"nothing was learned of {name}"


def test_model_is_in_eval_mode_while_units_are_learned(
    monkeypatch: pytest.MonkeyPatch, make_quantized: Make, calibration: Calibration, settings: DatasetSettings, tmp_path
) -> None:
    """The released code leaves dropout on; the tiny model has a dropout of one half."""
    network = make_quantized(calibrated=False)
    learn = reconstruction.learn_unit
    modes: set[bool] = set()

    def spy(unit: Unit, *rest: Any) -> dict[str, float]:
        dropouts = [m for m in network.modules() if isinstance(m, nn.Dropout)]
        assert any(dropout.p == 0.5 for dropout in dropouts)
        modes.update(dropout.training for dropout in dropouts)
        return learn(unit, *rest)

    monkeypatch.setattr(reconstruction, "learn_unit", spy)
    short = settings.reconstruction.model_copy(update={"iterations": 1})
    progress = reconstruction.Progress(tmp_path / "progress.safetensors", {})
    reconstruction.reconstruct(network, calibration, short, 0, progress)
    assert modes == {False}


def test_apply_gives_the_reconstructed_weights(
    reconstruction_file: Path,
    make_quantized: Make,
    calibration: Calibration,
    settings: DatasetSettings,
    denoiser: Denoiser,
    tmp_path: Path,
) -> None:
    source = make_quantized("w4a8", calibrated=False)
    progress = reconstruction.Progress(tmp_path / "progress.safetensors", {})
    reconstruction.reconstruct(source, calibration, settings.reconstruction, 0, progress)
    target = make_quantized("w4a4", calibrated=False)
    for layer in target.layers().values():
        for quantizer, _ in layer.weight_parts():
            quantizer.scale.mul_(1.01)  # as if another device had found another scale
    nearest = {name: layer.quantized_weight() for name, layer in target.layers().items()}
    sha256 = reconstruction.apply(reconstruction_file, target, denoiser, ROUNDING)
    assert sha256 == load_tensors(reconstruction_file, "reconstruction").manifest.sha256
    for name, layer in target.layers().items():
        assert torch.equal(layer.quantized_weight(), source.layers()[name].quantized_weight()), name
    assert any(not torch.equal(layer.quantized_weight(), nearest[name]) for name, layer in target.layers().items())


@pytest.mark.parametrize(
    ("bits", "options", "message"),
    [
        ("w3a8", {}, "weight_bits = 4, expected 3"),
        ("w4a8", {"weight_search": "mse"}, "weight_search = max, expected mse"),
        ("w4a8", {"weight_group": 8}, "weight_group = None, expected 8"),
        ("w4a8", {"split_shortcuts": True}, "split_shortcuts = False, expected True"),
    ],
)
def test_apply_to_another_grid(
    reconstruction_file: Path,
    make_quantized: Make,
    denoiser: Denoiser,
    bits: str,
    options: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=f"reconstructed with {message}"):
        reconstruction.apply(reconstruction_file, make_quantized(bits, calibrated=False, **options), denoiser, ROUNDING)


def test_apply_to_another_model(reconstruction_file: Path, make_quantized: Make, other_model_file: Path) -> None:
    with pytest.raises(ValueError, match=r"rounding of model .*, but the model given is"):
        reconstruction.apply(
            reconstruction_file, make_quantized(calibrated=False), denoisers.load(other_model_file), ROUNDING
        )


def test_manifest_says_how_it_was_made(
    reconstruction_file: Path, calibration: Calibration, denoiser: Denoiser, settings: DatasetSettings
) -> None:
    manifest = load_tensors(reconstruction_file, "reconstruction").manifest
    assert manifest.inputs == {"model": denoiser.sha256, "calibration": calibration.sha256}
    assert manifest.seeds == {"run": 0}
    assert manifest.settings["weight_bits"] == 4
    assert manifest.settings["reconstruction"]["iterations"] == settings.reconstruction.iterations
    assert all(set(unit) == {"nearest", "learned"} for unit in manifest.notes["losses"].values())
    assert 0 < manifest.notes["cache_mib"]["device"] <= settings.reconstruction.cache_mib
    assert manifest.notes["cache_mib"]["host"] == 0


def test_layer_outside_blocks_is_a_unit_of_its_own(make_quantized: Make) -> None:
    units = {unit.name: unit for unit in reconstruction.units(make_quantized(calibrated=False))}
    assert isinstance(units["conv_in"].module, QuantizedLayer)
    assert list(units["conv_in"].parts()) == ["conv_in.weight.0"]
    assert len(units["up_blocks.0.resnets.0"].parts()) == 4
    assert len(units["mid_block.attentions.0"].parts()) == 4
