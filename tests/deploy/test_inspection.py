"""What would become of a model, counted without its weights, is what becomes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from quest.artifacts import ArtifactError, Manifest, save_tensors
from quest.cli import main
from quest.config.values import Bits, ConfigError
from quest.deploy import inspection, start
from quest.deploy.quantize import settings_of
from quest.diffusion import denoiser as denoisers
from quest.quantization.network import QuantizedNetwork
from tests.architectures.miniatures import MINIATURES


@pytest.mark.parametrize("method", ["quest", "efficientdm", "tfmq-dm", "ptqd"])
@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
def test_sizes_are_those_of_the_quantized_network(model_file: Path, bits: str, method: str) -> None:
    found = inspection.inspect(model_file, bits, method)
    denoiser = denoisers.load(model_file)
    settings = settings_of(method, calibration={}, own={})
    recipe = start.recipe_of(settings, denoiser, method, Bits.parse(bits))
    network = QuantizedNetwork(denoiser.network, recipe, denoiser.example(), search=False)
    network.set_step(0)
    account: dict[str, Any] = inspection.account(network.network, network.example)
    assert (found.mib, found.gbops) == (account["weight_mib"], account["gbops"])
    layers = {str(layer.role) for layer in network.layers().values()}
    assert {group.role for group in found.layers} - {f"attention's {each}" for each in _OPERANDS} == layers
    weights = [group for group in found.layers if group.weight_bits is not None]
    assert sum(group.count for group in weights) == account["layers"]
    assert sum(group.parameters for group in weights) == account["weights_quantized"]
    rest = sum(each.parameters or 0 for each in found.not_quantized)
    assert rest + account["weights_quantized"] == found.parameters == account["parameters"]


_OPERANDS = ("q", "k", "v", "probabilities")


def test_what_a_paper_leaves_is_said(model_file: Path) -> None:
    found = inspection.inspect(model_file, "w4a4", "quest")
    assert {rest.what for rest in found.not_quantized} == {"biases of layers", "norms"}


def test_a_pipeline_needs_its_configuration_alone(tmp_path: Path, make_unet: Any, model_file: Path) -> None:
    """Made by diffusers, without its weights and without its scheduler."""
    unet: UNet2DModel = make_unet()
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path)
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    whole, alone = (inspection.inspect(each, "w4a8", "quest") for each in (tmp_path, tmp_path / "unet"))
    assert whole.layers == alone.layers == inspection.inspect(model_file, "w4a8", "quest").layers
    assert [rest.what for rest in whole.not_quantized] == ["biases of layers", "norms", "scheduler (DDPMScheduler)"]
    assert whole.mib == alone.mib


@pytest.mark.parametrize("family", ["sdxl", "dit", "pixart-sigma", "sd3", "flux"])
def test_a_folder_of_one_network(tmp_path: Path, family: str) -> None:
    network = MINIATURES[family].network()
    network.save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    found = inspection.inspect(tmp_path, "w8a8", "quest")
    assert found.network == type(network).__name__
    assert found.parameters == sum(each.numel() for each in network.parameters())
    kinds = {rest.what for rest in found.not_quantized}
    assert ("embeddings" in kinds, "single parameters" in kinds) == (family == "dit", family == "pixart-sigma")


def _refused(path: Path, **config: Any) -> str:
    if config:
        (path / "config.json").write_text(json.dumps(config))
    with pytest.raises((ArtifactError, ConfigError, ValueError)) as raised:
        inspection.inspect(path, "w4a8", "quest")
    return str(raised.value)


def test_each_refusal_says_what_was_found_and_what_to_do(tmp_path: Path, make_unet: Any) -> None:
    unet = dict(make_unet().config)
    assert "no such file or folder; expected a diffusers pipeline's folder" in _refused(tmp_path / "nowhere")
    assert "neither model_index.json nor config.json" in _refused(tmp_path)
    assert "no _class_name" in _refused(tmp_path, model_type="clip")
    unknown = _refused(tmp_path, _class_name="UNet3DConditionModel")
    assert "unknown 'UNet3DConditionModel' (did you mean 'UNet2DConditionModel'?)" in unknown
    assert "describe it in a file of quest/architectures" in unknown
    wrong = _refused(tmp_path, **(unet | {"_class_name": "UNet2DModel", "down_block_types": ["DownBlock4D"] * 2}))
    assert "a UNet2DModel cannot be built from its config: DownBlock4D does not exist" in wrong
    packed = {"quant_method": "quest", "bits": "w4a8"}
    assert "quantized already (quest w4a8)" in _refused(tmp_path, _class_name="UNet2DModel", quantization_config=packed)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "X", "vae": ["diffusers", "AutoencoderKL"]}))
    assert "without a part called unet or transformer; found vae" in _refused(tmp_path)
    (tmp_path / "model.ckpt").touch()
    assert "a file, but no .safetensors" in _refused(tmp_path / "model.ckpt")
    save_tensors(tmp_path / "other.safetensors", {}, Manifest(kind="checkpoint"))
    assert "of kind 'checkpoint' where 'model' is expected" in _refused(tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="w32a32 is full precision"):
        inspection.inspect(tmp_path, "w32a32", "quest")


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """A U-Net that pools the words of its context, by layers that no architecture explains."""
    config = {key: value for key, value in MINIATURES["sd2"].network().config.items() if not key.startswith("_")}
    config |= {"addition_embed_type": "text", "addition_embed_type_num_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(config | {"_class_name": "UNet2DConditionModel"}))
    return tmp_path


def test_roles_are_asked_for_and_taken(strange: Path) -> None:
    command = ["--quiet", "inspect", str(strange)]
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 1
    assert 'to begin with: {"add_embedding.pool.k_proj": "attention_k"' in refused.output
    roles = ["--role", "add_embedding.pool.*=projection", "--role", "add_embedding.proj=condition"]
    found = CliRunner().invoke(main, [*command, *roles, "--json"])
    assert found.exit_code == 0, found.output
    condition = next(each for each in json.loads(found.output)["layers"] if each["role"] == "condition")
    assert (condition["count"], condition["weight_bits"]) == (1, 4)
    misspelt = CliRunner().invoke(main, [*command, "--role", "add_embedding.pool"])
    assert "found 'add_embedding.pool'; expected <pattern>=<role>" in misspelt.output


def test_the_command_prints_both_tables(model_file: Path) -> None:
    printed = CliRunner().invoke(main, ["--quiet", "inspect", str(model_file), "--bits", "w4a8"]).output
    assert printed.startswith("UNet2DModel: ")
    assert "quest at w4a8" in printed
    assert any(line.split() == ["time_mlp", "2", "1,280", "4", "bits", "8", "bits"] for line in printed.splitlines())
    assert "norms" in printed
    assert "they scale and shift each element" in printed
    assert "MiB with its scales" in printed
