"""The `import-model` stage: what it writes, and that it writes nothing when something is wrong."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from quest import artifacts
from quest.artifacts import ArtifactError
from quest.cli import main
from quest.config.dataset import DatasetSettings
from quest.config.values import ConfigError
from quest.diffusion import denoiser as denoisers
from quest.quantization.account import account
from quest.stages import import_model

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def importable(make_settings: Callable[..., DatasetSettings]) -> Callable[..., DatasetSettings]:
    """The protocol of a golden model."""

    def make(name: str = "churches_ldm8", **changes: Any) -> DatasetSettings:
        given = {"source": str(GOLDEN / f"{name}.ckpt"), "architecture": str(GOLDEN / f"{name}.json")}
        return make_settings(image_size=64, image_channels=3, **(given | changes))

    return make


@pytest.mark.parametrize("name", ["bedrooms_ldm4", "churches_ldm8", "imagenet_ldm4"])
def test_artifact(importable: Callable[..., DatasetSettings], tmp_path: Path, name: str) -> None:
    output = tmp_path / "model.safetensors"
    settings = importable(name)
    import_model.run("tiny", settings, None, output)
    artifact = artifacts.load_tensors(output, "model")
    assert artifact.tensors["network.conv_in.weight"].dtype == torch.float16
    source = (GOLDEN / f"{name}.ckpt").read_bytes()
    assert artifact.manifest.inputs == {"source": hashlib.sha256(source).hexdigest()}
    assert artifact.manifest.notes["source"] == settings.source
    model = denoisers.load(output)
    assert artifact.manifest.notes["account"] == account(model.network, model.example())
    assert (model.conditioner is None) == (name != "imagenet_ldm4")
    if isinstance(model.network, UNet2DConditionModel):
        assert model.example()[2].shape == (1, 1, 24)
    assert model.first_stage is not None
    assert model.first_stage.scale_factor == pytest.approx(0.22765929 if name == "churches_ldm8" else 1.0)


def test_equal_sources_give_equal_bytes(importable: Callable[..., DatasetSettings], tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for file in files:
        import_model.run("tiny", importable(), None, file)
    assert files[0].read_bytes() == files[1].read_bytes()


def damaged(tmp_path: Path) -> Path:
    path = tmp_path / "source" / "model.ckpt"
    path.parent.mkdir()
    data = bytearray((GOLDEN / "churches_ldm8.ckpt").read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": str(GOLDEN / "bedrooms_ldm4.json")}, "not a checkpoint of this architecture"),
        ({"source_sha256": "0" * 64}, "sha256 is [0-9a-f]{64}, source_sha256 is 0000"),
        ({"source": "damaged"}, "another CRC"),
        ({"source": "data/nowhere.ckpt"}, "no such file; put the checkpoint"),
        ({"source": None}, "source: not set"),
    ],
)
def test_nothing_is_left_behind(
    importable: Callable[..., DatasetSettings], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    if change.get("source") == "damaged":
        change = {"source": str(damaged(tmp_path))}
    output = tmp_path / "models" / "model.safetensors"
    with pytest.raises(ValueError, match=message):
        import_model.run("tiny", importable(**change), None, output)
    assert not output.parent.exists() or not list(output.parent.iterdir())


def test_a_failed_import_keeps_the_model_that_was_there(
    importable: Callable[..., DatasetSettings], tmp_path: Path
) -> None:
    output = tmp_path / "model.safetensors"
    import_model.run("tiny", importable(), None, output)
    before = output.read_bytes()
    with pytest.raises(ArtifactError, match="source_sha256"):
        import_model.run("tiny", importable(source_sha256="1" * 64), None, output)
    assert output.read_bytes() == before
    assert list(tmp_path.iterdir()) == [output]


def test_either_imported_or_trained(make_settings: Callable[..., DatasetSettings]) -> None:
    pretrain = {"unet": {"channels": [8], "attention": [False]}, "steps": 1}
    with pytest.raises(ConfigError, match="source and pretrain are both set"):
        make_settings(source="x/y", pretrain=pretrain)


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(Path(__file__).parents[2] / "config", "config")
    wrong = CliRunner().invoke(main, ["import-model", "lsun-churches", "--output", "model.safetensors"])
    assert wrong.exit_code == 1
    assert "lsun_churches.zip" in wrong.output
    assert not (tmp_path / "model.safetensors").exists()
