"""The `finetune` stage: a checkpoint of every method, and of a variant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from quest import device, methods
from quest.artifacts import load_tensors
from quest.config.dataset import DatasetSettings
from quest.config.method import Rounding
from quest.config.methods import METHODS
from quest.config.values import Bits
from quest.deploy import checkpoints
from quest.diffusion.denoiser import Denoiser
from quest.learning.calibration import Calibration
from quest.learning.recomputing import Kept
from quest.quantization.network import QuantizedNetwork
from quest.quantization.roles import Role
from quest.stages import finetune, reconstruct

CPU = torch.device("cpu")
Make = Callable[..., QuantizedNetwork]
TIME = (Role.TIME_MLP, Role.TIME_PROJECTION)


@pytest.mark.parametrize("method", METHODS)
def test_stage_writes_a_checkpoint(
    method: str,
    settings: DatasetSettings,
    model_file: Path,
    calibration_file: Path,
    denoiser: Denoiser,
    calibration: Calibration,
    tmp_path: Path,
) -> None:
    rounding = methods.starts_from(method, settings.method(method))
    weights, output = tmp_path / "w4.safetensors", tmp_path / "checkpoint.safetensors"
    start = rounding or Rounding("blocks", "common")
    reconstruct.run("tiny", settings, model_file, 4, 0, *start, calibration_file, weights, CPU)
    finetune.run("tiny", settings, model_file, method, "w4a4", 0, calibration_file, weights, output, CPU)
    manifest = load_tensors(output, "checkpoint").manifest
    expected = {"model": denoiser.sha256, "calibration": calibration.sha256}
    if rounding:
        expected["reconstruction"] = load_tensors(weights, "reconstruction").manifest.sha256
    assert manifest.inputs == expected
    assert manifest.settings["method"] == settings.method(method).model_dump(mode="json")
    loaded = checkpoints.load(output, denoiser)
    assert loaded.method == method
    assert loaded.network.recipe.bits == Bits(4, 4)
    assert loaded.network.recipe.sets == settings.method(method).sets
    assert (loaded.correction is not None) == (method == "ptqd")
    again = tmp_path / "again.safetensors"
    finetune.run("tiny", settings, model_file, method, "w4a4", 0, calibration_file, weights, again, CPU)
    assert again.read_bytes() == output.read_bytes()


def test_a_variant_writes_a_checkpoint_of_its_name(
    make_settings: Callable[..., DatasetSettings],
    model_file: Path,
    calibration_file: Path,
    denoiser: Denoiser,
    tmp_path: Path,
) -> None:
    changes = {
        "methods": {"quest": {"rounding": "nearest", "stages": ["cma"], "policy": "time_full_precision"}},
        "quantizer": {"activation_symmetric": True, "legacy_symmetric_levels": True},
    }
    settings, output, name = make_settings(**changes), tmp_path / "checkpoint.safetensors", "quest+everything"
    finetune.run("tiny", settings, model_file, name, "w4a4", 0, calibration_file, None, output, CPU)
    manifest = load_tensors(output, "checkpoint").manifest
    assert "reconstruction" not in manifest.inputs
    account = manifest.notes["account"]
    assert account["activation_levels"] == 33
    assert account["mean_activation_bits"] > 5  # the time embedding's are at 32
    assert account["policy"] == "time_full_precision"
    loaded = checkpoints.load(output, denoiser)
    assert loaded.method == name
    assert not [layer for layer in loaded.network.layers().values() if layer.role in TIME]


@pytest.mark.parametrize("method", ["quest+nearest", "efficientdm", "traq+nearest"])
def test_a_limit_of_memory_is_no_part_of_the_result(
    method: str,
    make_settings: Callable[..., DatasetSettings],
    model_file: Path,
    calibration_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the last byte of its file; by the option, by the environment, and with every block computed again."""
    settings = make_settings(methods={name: {"rounding": "nearest"} for name in ("quest", "traq", "efficientdm")})
    measured = []
    monkeypatch.setattr(Kept, "blocks_for", lambda kept, _room: measured.append(1) or list(kept.inside))

    def written(name: str, memory: float | None = None) -> bytes:
        measured.clear()
        output = tmp_path / name
        finetune.run("tiny", settings, model_file, method, "w4a4", 0, calibration_file, None, output, CPU, memory)
        return output.read_bytes()

    without = written("without")
    assert not measured
    assert written("option", 100.0) == without
    assert measured
    monkeypatch.setenv(device.MEMORY, "100")
    assert written("environment") == without
    assert measured


def test_reconstruction_is_missing(
    settings: DatasetSettings, model_file: Path, calibration_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "checkpoint.safetensors"
    with pytest.raises(ValueError, match="quest starts from reconstructed weights; give them with --reconstruction"):
        finetune.run("tiny", settings, model_file, "quest", "w4a4", 0, calibration_file, None, output, CPU)
    assert not output.exists()
