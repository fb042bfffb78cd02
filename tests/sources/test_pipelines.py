"""Folders of diffusers pipelines, hub ids, and what is said when something is missing or damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from torch import nn

from quest.artifacts import ArtifactError
from quest.diffusion.conditioners import TextEncoder
from quest.sources import pipelines as loaders

WORDS = ["a</w>", "b</w>", "c</w>", "<|startoftext|>", "<|endoftext|>"]


def index(folder: Path, **parts: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        name: ["transformers" if "tok" in name or "text" in name else "diffusers", of] for name, of in parts.items()
    }
    (folder / "model_index.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def ddpm(tmp_path: Path, make_unet: Callable[..., UNet2DModel]) -> tuple[Path, nn.Module]:
    """A pixel-space pipeline with its files at the top, as google/ddpm-cifar10-32 has them."""
    folder = index(tmp_path / "ddpm", unet="UNet2DModel", scheduler="DDPMScheduler")
    network = make_unet()
    network.save_pretrained(folder)
    DDPMScheduler(beta_schedule="linear").save_pretrained(folder)
    return folder, network


@pytest.fixture
def ldm(tmp_path: Path, make_unet: Callable[..., UNet2DModel]) -> tuple[Path, nn.Module, nn.Module]:
    """A latent pipeline with a VQ model, in half precision."""
    folder = index(tmp_path / "ldm", unet="UNet2DModel", vqvae="VQModel", scheduler="DDIMScheduler")
    network = make_unet(in_channels=3, out_channels=3).half()
    autoencoder: Any = VQModel(block_out_channels=(32,), num_vq_embeddings=16, scaling_factor=0.5).half()
    network.save_pretrained(folder / "unet")
    autoencoder.save_pretrained(folder / "vqvae")
    DDPMScheduler(beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
    return folder, network, autoencoder


@pytest.fixture
def stable_diffusion(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A tiny text-conditional pipeline."""
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32,),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            cross_attention_dim=16,
        ),
        "vae": AutoencoderKL(block_out_channels=(32,), latent_channels=4),
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(WORDS),
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=6,
                bos_token_id=3,
                eos_token_id=4,
                pad_token_id=4,
            )
        ),
    }
    names = {name: type(part).__name__ for name, part in parts.items()}
    folder = index(tmp_path / "sd", **names, tokenizer="CLIPTokenizer", scheduler="PNDMScheduler")
    for name, part in parts.items():
        part.eval().save_pretrained(folder / name)
    PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")
    words = folder / "tokenizer"
    words.mkdir()
    (words / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(WORDS)}))
    (words / "merges.txt").write_text("#version: 0.2\n")
    (words / "tokenizer_config.json").write_text(
        json.dumps({"pad_token": "<|endoftext|>", "model_max_length": 6, "tokenizer_class": "CLIPTokenizer"})
    )
    return folder, parts


def same(found: Any, expected: Any) -> None:
    assert found.training is False
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
        assert found.state_dict()[name].dtype == tensor.dtype


def test_pixel_space(ddpm: tuple[Path, nn.Module]) -> None:
    folder, network = ddpm
    model = loaders.open_source(folder)
    same(model.network, network)
    assert model.first_stage is None
    assert model.conditioner is None
    assert model.scheduler.config["beta_schedule"] == "linear"
    assert model.scheduler.config["clip_sample"] is True
    assert model.scheduler.final_alpha_cumprod == 1.0


def test_pickled_weights_of_a_folder(ddpm: tuple[Path, nn.Module]) -> None:
    folder, network = ddpm
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    network.save_pretrained(folder, safe_serialization=False)  # type: ignore[operator]
    same(loaders.open_source(folder).network, network)


def test_latent(ldm: tuple[Path, nn.Module, nn.Module]) -> None:
    folder, network, autoencoder = ldm
    model = loaders.open_source(folder)
    same(model.network, network)
    assert model.first_stage is not None
    same(model.first_stage.network, autoencoder)
    assert model.first_stage.scale_factor == 0.5


def test_text_conditional(stable_diffusion: tuple[Path, dict[str, Any]]) -> None:
    folder, parts = stable_diffusion
    model = loaders.open_source(folder)
    same(model.network, parts["unet"])
    assert isinstance(model.conditioner, TextEncoder)
    same(model.conditioner.model, parts["text_encoder"])
    assert model.first_stage is not None
    assert model.first_stage.scale_factor == 0.18215
    config = model.scheduler.config
    assert (config["beta_start"], config["steps_offset"], config["set_alpha_to_one"]) == (0.00085, 1, False)
    ids = model.conditioner.tokenizer.encode_batch(["", "A b", "a c a c a c a c"])
    assert [each.ids for each in ids] == [[3, 4, 4, 4, 4, 4], [3, 0, 1, 4, 4, 4], [3, 0, 2, 0, 2, 4]]
    with torch.no_grad():
        assert model.conditioner(["a b", None]).shape == (2, 6, 16)


MISSING = [
    *("unet/diffusion_pytorch_model.safetensors", "unet/config.json", "vae/diffusion_pytorch_model.safetensors"),
    *("text_encoder/model.safetensors", "text_encoder/config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"),
    *("scheduler/scheduler_config.json", "model_index.json"),
]


@pytest.mark.parametrize("file", MISSING)
def test_half_of_a_folder(stable_diffusion: tuple[Path, dict[str, Any]], file: str) -> None:
    folder, _ = stable_diffusion
    (folder / file).unlink()
    with pytest.raises(ArtifactError, match=r"fetch it again|not a CLIP text model") as caught:
        loaders.open_source(folder)
    assert file.split("/")[0] in str(caught.value)


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"])
def test_truncated_weights(stable_diffusion: tuple[Path, dict[str, Any]], part: str) -> None:
    folder, _ = stable_diffusion
    file = folder / f"{part}.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ArtifactError) as caught:
        loaders.open_source(folder)
    assert str(file) in str(caught.value)


def test_weights_of_another_network(
    stable_diffusion: tuple[Path, dict[str, Any]], ddpm: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    folder, _ = stable_diffusion
    weights = "diffusion_pytorch_model.safetensors"
    shutil.copy(ddpm[0] / weights, folder / "unet" / weights)
    with pytest.raises(ArtifactError, match=r"unet/diffusion.*(expected shape|: missing)"):
        loaders.open_source(folder)
    content = json.loads((folder / "model_index.json").read_text())
    content["unet"] = ["diffusers", "SD3Transformer2DModel"]
    (folder / "model_index.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="unet is 'SD3Transformer2DModel'; known are UNet2DModel"):
        loaders.open_source(folder)


def test_checksum_follows_the_content(ddpm: tuple[Path, nn.Module]) -> None:
    folder, _ = ddpm
    before = loaders.checksum(folder)
    (folder / "README.md").write_text("not of the model")
    assert loaders.checksum(folder) == before
    config = folder / "config.json"
    config.write_text(config.read_text() + " ")
    assert loaders.checksum(folder) != before


def test_hub_id_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ArtifactError) as caught:
        loaders.locate("google/ddpm-cifar10-32")
    message = str(caught.value)
    assert message.startswith("google/ddpm-cifar10-32: not a path here, and the hub did not give it (")
    assert "`hf download google/ddpm-cifar10-32 --local-dir google/ddpm-cifar10-32`" in message
    assert str(tmp_path / "google" / "ddpm-cifar10-32") in message
    (tmp_path / "google" / "ddpm-cifar10-32").mkdir(parents=True)
    assert loaders.locate("google/ddpm-cifar10-32") == Path("google/ddpm-cifar10-32")


def test_missing_checkpoint_says_where_it_was_published() -> None:
    architecture = Path(__file__).parents[2] / "config" / "models" / "lsun-churches.yaml"
    with pytest.raises(ArtifactError, match=r"^data/x\.ckpt: no such file; put .*\Wlsun_churches\.zip"):
        loaders.locate("data/x.ckpt", architecture)
    with pytest.raises(ArtifactError, match=r"/nowhere/folder: no such file; put the folder"):
        loaders.locate("/nowhere/folder")


def test_checkpoint_without_architecture(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"name its architecture, one of config/models"):
        loaders.open_source(tmp_path / "model.ckpt")
