"""Files of weights: every form that diffusers writes, whatever their precision, and that a checksum covers them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from safetensors.torch import load_file, save_file

from quest.artifacts import ArtifactError
from quest.config.dataset import DatasetSettings
from quest.sources import pipelines, weights
from quest.stages import import_model

STEM = "diffusion_pytorch_model"


def same(found: Any, expected: Any) -> bool:
    return all(torch.equal(found.state_dict()[name], tensor) for name, tensor in expected.state_dict().items())


@pytest.mark.parametrize(
    ("how", "halves"),
    [
        ({}, False),
        ({"safe_serialization": False}, False),
        ({"variant": "fp16"}, True),
        ({"variant": "fp16", "safe_serialization": False}, True),
        ({"max_shard_size": "20KB"}, False),
        ({"max_shard_size": "20KB", "variant": "fp16"}, True),
        ({"max_shard_size": "20KB", "safe_serialization": False}, False),
    ],
)
def test_every_form(
    publish: Callable[..., Path], make_unet: Callable[..., UNet2DModel], how: dict[str, Any], halves: bool
) -> None:
    network = make_unet().half() if halves else make_unet()
    folder = publish(network, **how)
    assert not (folder / "unet" / f"{STEM}.safetensors").exists() or not how
    assert ("max_shard_size" in how) == (len(list((folder / "unet").glob("*-00002-of-*"))) == 1)
    found = pipelines.open_source(folder).network
    assert found.get_parameter("conv_in.weight").dtype == (torch.float16 if halves else torch.float32)
    assert same(found, network)


def test_full_precision_before_halves(publish: Callable[..., Path], make_unet: Callable[..., UNet2DModel]) -> None:
    network = make_unet()
    folder = publish(network)
    make_unet().half().save_pretrained(folder / "unet", variant="fp16")
    assert same(pipelines.open_source(folder).network, network)


def test_a_shard_that_is_missing(publish: Callable[..., Path]) -> None:
    folder = publish(max_shard_size="20KB")
    shard = sorted((folder / "unet").glob("*-00002-of-*"))[0]
    shard.unlink()
    with pytest.raises(ArtifactError, match=rf"{shard.name}: no such file, but {STEM}\.safetensors\.index\.json names"):
        pipelines.open_source(folder)


@pytest.mark.parametrize("others", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("safe", [True, False])
def test_tensors_of_several_precisions_are_all_kept(
    publish: Callable[..., Path], others: torch.dtype, safe: bool
) -> None:
    folder = publish(safe_serialization=safe)
    file = folder / "unet" / f"{STEM}.{'safetensors' if safe else 'bin'}"
    tensors = load_file(file) if safe else torch.load(file)
    first = sorted(tensors)[0]
    tensors[first] = tensors[first].to(others)
    save_file(tensors, file, {"format": "pt"}) if safe else torch.save(tensors, file)
    found = pipelines.open_source(folder).network.state_dict()
    assert all(torch.equal(found[name].float(), tensor.float()) for name, tensor in tensors.items())


def test_weights_of_eight_bits(publish: Callable[..., Path]) -> None:
    folder = publish()
    file = folder / "unet" / f"{STEM}.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"conv_in.bias": tensors["conv_in.bias"].to(torch.float8_e4m3fn)}, file, {"format": "pt"})
    with pytest.raises(ArtifactError, match=r"conv_in\.bias is F8_E4M3; expected weights in full precision"):
        pipelines.open_source(folder)


@pytest.mark.parametrize("how", [{"safe_serialization": False}, {"variant": "fp16"}, {"max_shard_size": "20KB"}])
def test_checksum_covers_every_form(publish: Callable[..., Path], how: dict[str, Any]) -> None:
    folder = publish(**how)
    before = pipelines.checksum(folder)
    file = next(file for file in sorted((folder / "unet").iterdir()) if file.suffix in (".bin", ".safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert pipelines.checksum(folder) != before


def test_torchs_old_format_needs_a_checksum(
    publish: Callable[..., Path], make_settings: Callable[..., DatasetSettings], tmp_path: Path
) -> None:
    folder, output = publish(safe_serialization=False), tmp_path / "model.safetensors"
    file = folder / "unet" / f"{STEM}.bin"
    torch.save(torch.load(file), file, _use_new_zipfile_serialization=False)
    with pytest.raises(ArtifactError, match="which has no checksum"):
        import_model.run("d", make_settings(source=str(folder)), None, output)
    given = pipelines.checksum(folder)
    import_model.run("d", make_settings(source=str(folder), source_sha256=given), None, output)
    assert output.exists()


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=rf"{STEM}\.safetensors: no such file; the folder is incomplete"):
        weights.find(tmp_path, STEM)


def test_halves_are_fetched_where_there_is_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def fetch(name: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append("*.fp16.*" not in ignore_patterns and "*.bin" in allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    pipelines.locate("some/model")
    assert asked == [False, True]
    (tmp_path / f"{STEM}.safetensors").write_bytes(b"")
    pipelines.locate("some/model")
    assert asked == [False, True, False]
