"""Checkpoints of the released latent diffusion code, against what that code's own modules gave."""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from quest.artifacts import ArtifactError
from quest.config.values import ConfigError
from quest.diffusion.denoiser import Denoiser
from quest.sources import compvis
from quest.sources.compvis import Architecture

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
NAMES = ("bedrooms_ldm4", "churches_ldm8", "imagenet_ldm4")
PUBLISHED = {
    name: ROOT / "config" / "models" / f"{name}.yaml" for name in ("lsun-bedrooms", "lsun-churches", "imagenet")
}


def opened(name: str) -> Denoiser:
    """A golden model in float32."""
    model = compvis.open_checkpoint(GOLDEN / f"{name}.ckpt", compvis.read_architecture(GOLDEN / f"{name}.json"))
    assert model.network.get_parameter("conv_in.weight").dtype == torch.float16, "as in the source"
    assert model.first_stage is not None
    model.network.float()
    model.first_stage.network.float()
    if model.conditioner is not None:
        model.conditioner.float()
    return model


@pytest.fixture
def golden() -> Callable[[str], tuple[dict[str, Tensor], Architecture]]:
    """State dict (a copy) and architecture of a golden model."""

    def read(name: str) -> tuple[dict[str, Tensor], Architecture]:
        return compvis.read_state(GOLDEN / f"{name}.ckpt"), compvis.read_architecture(GOLDEN / f"{name}.json")

    return read


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_outputs_are_those_of_the_original_modules(name: str) -> None:
    model, expected = opened(name), load_file(GOLDEN / f"{name}.safetensors")
    arguments: tuple[Tensor, ...] = expected["x"], expected["t"]
    if model.conditioner is not None:
        labels = [None if label == 10 else label for label in expected["class_label"].tolist()]
        assert None in labels
        arguments += (model.conditioner(labels),)
    assert (model.network(*arguments).sample - expected["eps"]).abs().max() < 1e-4
    if "image" not in expected:
        return
    assert (model.decode(expected["z"]) - expected["image"]).abs().max() < 1e-4
    assert model.first_stage is not None
    autoencoder: Any = model.first_stage.network
    encoded = autoencoder.encode(expected["encoder_input"])
    moments = encoded.latent_dist.parameters if name.startswith("churches") else encoded.latents
    assert (moments - expected["encoder_moments"]).abs().max() < 1e-4


def test_scale_factor_of_the_checkpoint_wins(golden: Callable[..., Any]) -> None:
    state, architecture = golden("churches_ldm8")
    stage = compvis.convert(state, architecture.model_copy(update={"scale_factor": 1.0})).first_stage
    assert stage is not None
    assert stage.scale_factor == pytest.approx(0.22765929)
    state.pop("scale_factor")
    stage = compvis.convert(state, architecture.model_copy(update={"scale_factor": 0.5})).first_stage
    assert stage is not None
    assert stage.scale_factor == 0.5
    with pytest.raises(ValueError, match="scale_factor: missing"):
        compvis.convert(state, architecture.model_copy(update={"scale_by_std": True}))


@pytest.mark.parametrize(
    ("name", "start", "end"),
    [("lsun-bedrooms", 0.0015, 0.0195), ("lsun-churches", 0.0015, 0.0155), ("imagenet", 0.0015, 0.0195)],
)
def test_noise_schedule(name: str, start: float, end: float) -> None:
    schedule = compvis.build_schedule(compvis.read_architecture(PUBLISHED[name]))
    betas = torch.linspace(start**0.5, end**0.5, 1000, dtype=torch.float64) ** 2
    torch.testing.assert_close(schedule.alphas_cumprod.double(), torch.cumprod(1 - betas, 0), atol=1e-5, rtol=1e-4)
    assert schedule.final_alpha_cumprod == schedule.alphas_cumprod[0]
    assert schedule.config["steps_offset"] == 1
    assert schedule.config["clip_sample"] is False


@pytest.mark.parametrize("change", ["missing", "misshapen", "unknown", "averages"])
def test_first_weight_that_does_not_fit_is_named(golden: Callable[..., Any], change: str) -> None:
    state, architecture = golden("bedrooms_ldm4")
    averaged = "model_ema.diffusion_modelmiddle_block1qkvweight"
    if change == "missing":
        key = "first_stage_model.decoder.up.1.block.0.conv1.weight"
        state.pop(key)
        message = f"{key}: missing; expected (32, 64, 3, 3)"
    elif change == "misshapen":
        state[averaged] = state[averaged][:64]
        message = f"{averaged}: found (64, 64, 1), expected (192, 64, 1)"
    elif change == "unknown":
        state["model.diffusion_model.label_emb.weight"] = torch.zeros(5, 2)
        message = "model.diffusion_model.label_emb.weight: found (5, 2), but the architecture has no such weight"
    else:
        state = {key: tensor for key, tensor in state.items() if not key.startswith("model_ema.")}
        assert "model.diffusion_model.middle_block.1.qkv.weight" in state
        message = "model_ema.diffusion_modelinput_blocks00weight: missing; expected (32, 3, 3, 3)"
    with pytest.raises(ValueError, match=re.escape(message)):
        compvis.convert(state, architecture)


def test_what_only_training_used_is_ignored(golden: Callable[..., Any]) -> None:
    state, architecture = golden("bedrooms_ldm4")
    extra = {"logvar": torch.zeros(3), "first_stage_model.loss.discriminator.0": torch.ones(1)}
    model = compvis.convert(state | extra, architecture)
    assert model.conditioner is None


def test_noise_schedule_of_the_checkpoint_is_compared(golden: Callable[..., Any]) -> None:
    state, architecture = golden("bedrooms_ldm4")
    betas = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2
    compvis.convert(state | {"betas": betas.half()}, architecture)
    for other in (torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, betas[:500]):
        with pytest.raises(ValueError, match=r"^betas: found \d+, from .*, but linear_start and linear_end make 1000"):
            compvis.convert(state | {"betas": other}, architecture)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 0, "num_head_channels": -1}, "num_heads is 0 and num_head_channels -1; set one"),
        ({"num_heads": -1, "num_head_channels": -1}, "num_heads is -1 and num_head_channels -1; set one"),
        ({"num_heads": 5, "num_head_channels": -1}, "num_heads is 5, which does not divide the 64 channels of level 1"),
        ({"num_head_channels": 48}, "num_head_channels is 48, which does not divide the 64 channels of level 1"),
        ({"image_size": 15}, "image_size is 15, which 2 levels cannot halve 1 times"),
        ({"model_channels": 40}, "model_channels times 1 is 40, which 32 groups do not divide"),
        ({"context_dim": 8}, "use_spatial_transformer and context_dim go together"),
    ],
)
def test_architecture_that_cannot_be_built(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    content = json.loads((GOLDEN / "bedrooms_ldm4.json").read_text())
    content["unet_config"] |= changes
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=re.escape(message)):
        compvis.read_architecture(file)


def test_a_file_without_a_checksum_of_its_own_needs_one_that_is_given(tmp_path: Path) -> None:
    """torch's format before 1.6: a flipped bit in its tensors is read as if it were none."""
    path, state = tmp_path / "model.ckpt", {"x": torch.ones(64)}
    torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ArtifactError, match=r"model\.ckpt: in torch's format from before .*; give .* as source_sha256"):
        compvis.read_state(path)
    assert torch.equal(compvis.read_state(path, trusted=True)["x"], state["x"])


def test_checkpoint_of_another_architecture() -> None:
    architecture = compvis.read_architecture(GOLDEN / "churches_ldm8.json")
    with pytest.raises(ArtifactError, match=r"\.ckpt: not a checkpoint of this architecture: model\.diffusion"):
        compvis.open_checkpoint(GOLDEN / "bedrooms_ldm4.ckpt", architecture)


@pytest.mark.parametrize("where", [0.2, 0.5, 0.8])
def test_damaged_checkpoint(tmp_path: Path, where: float) -> None:
    data = bytearray((GOLDEN / "imagenet_ldm4.ckpt").read_bytes())
    path = tmp_path / "model.ckpt"
    data[int(len(data) * where)] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"model\.ckpt: cannot be read \(.*CRC.*fetch it again"):
        compvis.read_state(path)
    path.write_bytes(data[: int(len(data) * where)])
    with pytest.raises(ArtifactError, match=r"model\.ckpt: .*fetch"):
        compvis.read_state(path)


class _Runs:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("plain", [False, True])
def test_code_in_a_checkpoint_is_refused_and_does_not_run(tmp_path: Path, plain: bool) -> None:
    path, mark = tmp_path / "model.ckpt", tmp_path / "it_ran"
    content = {"state_dict": {"x": torch.zeros(1)}, "callbacks": _Runs(mark)}
    if plain:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(ArtifactError, match="refused, and nothing in it was executed"):
        compvis.read_state(path)
    assert not mark.exists()
    torch.load(path, weights_only=False) if not plain else pickle.loads(path.read_bytes())
    assert mark.exists(), "the file would have run it"


def test_what_pytorch_lightning_leaves_in_a_checkpoint_is_read(tmp_path: Path) -> None:
    """A callback's class as a key, as its older versions wrote it, and a number of numpy."""
    path = tmp_path / "model.ckpt"
    content = {"state_dict": {"x": torch.ones(2)}, "callbacks": {"KEY": {"best": np.float64(0.5)}}}
    torch.save(content, path)
    with zipfile.ZipFile(path) as archive:
        files = {info.filename: archive.read(info) for info in archive.infolist()}
    (name,) = [name for name in files if name.endswith("data.pkl")]
    reference = b"cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n"
    key = b"X\x03\x00\x00\x00KEY"
    assert key in files[name]
    files[name] = files[name].replace(key, reference)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file, data in files.items():
            archive.writestr(file, data)
    assert compvis.read_state(path)["x"].tolist() == [1.0, 1.0]


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"weights": torch.zeros(1)}, path)
    with pytest.raises(ArtifactError, match=r"found keys \['weights'\]; expected a checkpoint with tensors under"):
        compvis.read_state(path)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(ArtifactError, match="found a list; expected tensors by name"):
        compvis.read_state(path)


def test_wrong_architecture_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file.*config/models"):
        compvis.read_architecture(tmp_path / "none.yaml")
    file = tmp_path / "a.yaml"
    file.write_text(PUBLISHED["imagenet"].read_text().replace("num_heads", "num_head"))
    with pytest.raises(ConfigError, match=r"unet_config\.num_head: unknown 'num_head' \(did you mean 'num_heads'\?\)"):
        compvis.read_architecture(file)
