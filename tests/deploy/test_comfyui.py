"""Files for ComfyUI, read by the library that ComfyUI multiplies them with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from quest.artifacts import ArtifactError
from quest.cli import main
from quest.config.quantizer import QuantizerSettings
from quest.config.sampling import SamplerSettings
from quest.config.values import Bits
from quest.deploy import checkpoints
from quest.deploy.checkpoints import Checkpoint
from quest.deploy.comfyui import export_comfyui, names_of
from quest.deploy.quantized import QuantizedModel
from quest.diffusion import denoiser as denoisers
from quest.diffusion.denoiser import Denoiser
from quest.quantization.network import QuantizedNetwork
from quest.quantization.quantizers import calibrating
from quest.quantization.recipe import Recipe

PREFIX = "model.diffusion_model."


def unet(**changes: Any) -> UNet2DConditionModel:
    """Of two levels, the first of them with attention to a context of 8 channels."""
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 2,
        "cross_attention_dim": 8,
    }
    return UNet2DConditionModel(**(config | changes)).eval().requires_grad_(False)


def quantized(bits: str, **changes: Any) -> QuantizedModel:
    network = unet(**changes)
    call = torch.randn(1, 4, 8, 8), torch.full((1,), 500), torch.randn(1, 3, 8)
    settings = QuantizerSettings(weight_search="max", activation_search="max")
    grids = QuantizedNetwork(network, Recipe(Bits.parse(bits), settings, 1, 1), call)
    grids.set_step(0)
    with torch.no_grad(), calibrating(grids):
        grids(*call)
    sampler = SamplerSettings(steps=1, timesteps=(500,))
    checkpoint = Checkpoint(grids, "nearest", sampler, inputs={"model": "0" * 64})
    return QuantizedModel(checkpoint, Denoiser(network, DDIMScheduler()))


@pytest.mark.parametrize("bits", ["w4a8", "w7a8"])
def test_what_the_other_library_reads_is_the_weight_on_its_grid(bits: str, tmp_path: Path) -> None:
    tensor = pytest.importorskip("comfy_kitchen.tensor")
    model = quantized(bits)
    tensors = load_file(export_comfyui(model, tmp_path / "unet.safetensors"))
    layers = {name: layer for name, layer in model.network.layers().items() if layer.weight.ndim == 2}
    marked = [name for name in tensors if name.endswith(".comfy_quant")]
    assert len(marked) == len(layers) > 10
    block = "transformer_blocks.0"
    names = {  # as published checkpoints of Stable Diffusion call them
        f"down_blocks.0.attentions.0.{block}.attn2.to_k": f"input_blocks.1.1.{block}.attn2.to_k",
        "down_blocks.0.resnets.0.time_emb_proj": "input_blocks.1.0.emb_layers.1",
        f"mid_block.attentions.0.{block}.ff.net.2": f"middle_block.1.{block}.ff.net.2",
        f"up_blocks.1.attentions.1.{block}.attn1.to_out.0": f"output_blocks.3.1.{block}.attn1.to_out.0",
        "time_embedding.linear_2": "time_embed.2",
    }
    for ours, theirs in names.items():
        name = PREFIX + theirs
        assert json.loads(bytes(tensors[f"{name}.comfy_quant"].tolist())) == {"format": "int8_tensorwise"}
        weight, scale = tensors[f"{name}.weight"], tensors[f"{name}.weight_scale"]
        assert (weight.dtype, scale.dtype, scale.shape) == (torch.int8, torch.float32, (len(weight), 1))
        how = tensor.TensorWiseINT8Layout.Params(scale=scale, orig_dtype=torch.float32, orig_shape=tuple(weight.shape))
        read = tensor.QuantizedTensor(weight, "TensorWiseINT8Layout", how)
        expected = layers[ours].quantized_weight()
        torch.testing.assert_close(read.dequantize(), expected, rtol=1e-6, atol=1e-8)
        # Its own product quantizes each row of activations, which ours does not: eight bits apart, no more.
        x = torch.randn(5, weight.shape[1], generator=torch.Generator().manual_seed(1))
        product = nn.functional.linear(
            tensor.QuantizedTensor.from_float(x, "TensorWiseINT8Layout", is_weight=False), read
        )
        exact = nn.functional.linear(x, expected)
        assert float((product - exact).norm() / exact.norm()) < 0.02


def test_all_else_is_there_in_half_precision(tmp_path: Path) -> None:
    model = quantized("w4a8")
    file = export_comfyui(model, tmp_path / "unet.safetensors")
    tensors = load_file(file)
    linear = sum(layer.weight.ndim == 2 for layer in model.network.layers().values())
    assert len(tensors) == len(unet().state_dict()) + 2 * linear
    assert all(name.startswith(PREFIX) for name in tensors)
    rest = {name: each for name, each in tensors.items() if not name.endswith((".comfy_quant", ".weight_scale"))}
    assert {each.dtype for each in rest.values()} == {torch.int8, torch.float16}
    convolution = model.network.layers()["down_blocks.0.resnets.0.conv1"].quantized_weight()
    assert torch.equal(tensors[f"{PREFIX}input_blocks.1.0.in_layers.2.weight"], convolution.half())
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt", "quest": "nearest w4a8", "quest_model": "0" * 64}
    with pytest.raises(ArtifactError, match="is there already"):
        export_comfyui(model, file)
    export_comfyui(model, file, force=True)


def test_what_has_no_such_form_says_why(tmp_path: Path) -> None:
    file = tmp_path / "unet.safetensors"
    with pytest.raises(ValueError, match=r"its 8-bit weights are .* expected weights of up to 7 bits"):
        export_comfyui(quantized("w8a8"), file)
    with pytest.raises(ValueError, match=r"32 groups do not divide"):
        export_comfyui(quantized("w4a8", block_out_channels=(16, 32), norm_num_groups=8), file)
    with pytest.raises(
        ValueError, match=r"class_embedding.weight: latent diffusion's released code has no such weight"
    ):
        names_of(unet(num_class_embeds=3))("class_embedding.weight")
    assert not file.exists()


def test_another_kind_of_network_is_refused(model_file: Path, make_quantized: Any, tmp_path: Path) -> None:
    inputs = {"model": denoisers.load(model_file).sha256}
    own = Checkpoint(make_quantized("w4a8"), "nearest", SamplerSettings(steps=4), inputs=inputs)
    checkpoints.save(tmp_path / "checkpoint.safetensors", own)
    arguments = ["export", str(tmp_path / "checkpoint.safetensors"), "--model", str(model_file)]
    done = CliRunner().invoke(main, [*arguments, "--format", "comfyui", "--output", str(tmp_path / "unet.safetensors")])
    assert done.exit_code != 0
    assert "found a UNet2DModel, expected a UNet2DConditionModel" in done.output + str(done.exception)
