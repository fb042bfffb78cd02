"""Exported folders: what diffusers reads of them is the quantized network, code for code, on every pipeline."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors.torch import load_file

import quest
from quest.artifacts import ArtifactError
from quest.cli import main
from quest.config.dataset import DatasetSettings
from quest.config.sampling import SamplerSettings
from quest.config.values import Bits
from quest.deploy.checkpoints import Checkpoint
from quest.deploy.packed.assembly import TABLES, packed_layers
from quest.deploy.quantized import QuantizedModel
from quest.deploy.start import recipe as make_recipe
from quest.diffusion import denoiser as denoisers
from quest.diffusion.correction import Correction
from quest.diffusion.denoiser import Denoiser
from quest.learning.calibration import Calibration
from quest.learning.finetuning import calibrate_activations
from quest.quantization.network import QuantizedNetwork
from quest.quantization.quantizers import Split

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden"
FEW: dict[str, Any] = {
    "steps": 4,
    "calibration": {"steps": 4, "samples_per_step": 2},
    "quantizer": {"weight_search": "max", "activation_search": "max"},
    "settings": {"sets": 2},
    "device": "cpu",
}
LENGTH = 8


@pytest.fixture(scope="module")
def pixels(make_unet: Callable[..., UNet2DModel]) -> QuantizedModel:
    pipeline = DDIMPipeline(make_unet(), DDIMScheduler(clip_sample=False))
    return quest.quantize(pipeline, "w4a8", "nearest", **FEW)


@pytest.fixture(scope="module")
def folder(pixels: QuantizedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quest.export(pixels, tmp_path_factory.mktemp("exported") / "tiny")


def text_pipeline() -> StableDiffusionPipeline:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=16,
    )
    vae = AutoencoderKL(block_out_channels=(8,), latent_channels=4, norm_num_groups=4, sample_size=8)
    words = {"a": 0, "b": 1, "<s>": 2, "</s>": 3}
    backend = Tokenizer(models.WordLevel(words, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="</s>", model_max_length=LENGTH)
    config = CLIPTextConfig(
        vocab_size=4,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=3,
    )
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
    parts: dict[str, Any] = {"tokenizer": tokenizer, "unet": unet.eval(), "scheduler": scheduler}
    return StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=CLIPTextModel(config).eval(),
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
        **parts,
    )


def opened(path: Path, **how: Any) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(path, **how)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def inputs(model: QuantizedModel, count: int = 2) -> tuple[torch.Tensor, dict[str, Any]]:
    x = torch.randn(count, *model.around.shape, generator=torch.Generator().manual_seed(1))
    context = None if model.around.conditioner is None else model.around.conditioner([None] * count)
    return x, {} if context is None else {"encoder_hidden_states": context}


@torch.no_grad()
def assert_same_network(model: QuantizedModel, unet: Any) -> None:
    layers, packed = model.network.layers(), packed_layers(unet)
    assert list(layers) == list(packed)
    for name, layer in layers.items():
        codes = torch.cat([quantizer.codes(weight) for quantizer, weight in layer.weight_parts()], 1)
        assert torch.equal(packed[name].whole_codes(), codes), name
        assert torch.equal(packed[name].weight, layer.quantized_weight()), name
    x, more = inputs(model)
    for step, timestep in enumerate(model.around.sampler(model.sampler).timesteps.tolist()):
        model.network.set_step(step)
        expected = model.network(x, torch.full((len(x),), timestep), **more).sample
        torch.testing.assert_close(unet(x, timestep, **more).sample, expected, rtol=1e-5, atol=1e-5)


def test_pixel_models(pixels: QuantizedModel, folder: Path) -> None:
    pipeline = opened(folder)
    assert type(pipeline).__name__ == "DDIMPipeline"
    assert_same_network(pixels, pipeline.unet)
    drawn = pipeline(batch_size=3, num_inference_steps=4, output_type="np").images
    assert drawn.shape == (3, 8, 8, 1)


@pytest.mark.parametrize("name", ["bedrooms_ldm4", "churches_ldm8", "imagenet_ldm4"])
def test_latent_models(name: str, tmp_path: Path) -> None:
    """Unconditional with a VQ and a KL first stage, and of classes; heads that the config cannot say among them."""
    model = quest.quantize(
        GOLDEN / f"{name}.ckpt", "w4a4", "nearest", architecture=GOLDEN / f"{name}.json", **FEW, classes=None
    )
    pipeline = opened(quest.export(model, tmp_path / name))
    assert type(pipeline).__name__ == "QuestLatentPipeline"
    assert_same_network(model, pipeline.unet)
    given = {"class_labels": [0, 1]} if name == "imagenet_ldm4" else {"batch_size": 2}
    noise, _ = inputs(model)
    drawn = pipeline(latents=noise, num_inference_steps=4, output_type="pt", **given).images
    latents = pipeline(latents=noise, num_inference_steps=4, output_type="latent", **given).images
    expected = (model.around.decode(latents) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(drawn, expected)
    wrong = {"batch_size": 1} if "class_labels" in given else {"class_labels": [0]}
    with pytest.raises(ValueError, match=r"class_labels: found (none|some)"):
        pipeline(num_inference_steps=1, **wrong)


def test_models_of_prompts(tmp_path: Path) -> None:
    source = text_pipeline()
    model = quest.quantize(source, "w8a8", "nearest", prompts=["a b", "b"], guidance_scale=2.0, **FEW)
    pipeline = opened(quest.export(model, tmp_path / "text"))
    assert type(pipeline).__name__ == "StableDiffusionPipeline"
    assert_same_network(model, pipeline.unet)
    embedded, _ = pipeline.encode_prompt(["b a", ""], "cpu", 1, False)
    assert model.around.conditioner is not None
    torch.testing.assert_close(embedded, model.around.conditioner(["b a", ""]))
    drawn = pipeline(["a", "b"], num_inference_steps=2, output_type="np").images
    assert drawn.shape == (2, 8, 8, 3)


OFFSETS = {"activation_granularity": {"4": "offsets", "8": "per_tensor"}}
MULTIPLES = {"activation_granularity": {"4": "multiples", "8": "per_tensor"}}


@pytest.mark.parametrize(
    "changed",
    [
        {"weight_group": 4},
        {"split_shortcuts": True},
        {"activation_symmetric": True},
        OFFSETS,
        MULTIPLES,
        MULTIPLES | {"split_shortcuts": True, "weight_group": 4},
    ],
)
def test_every_layout_of_scales(changed: dict[str, Any], make_quantized: Callable[..., Any], tmp_path: Path) -> None:
    network = make_quantized("w4a4", **changed)
    if "split_shortcuts" in changed:
        assert any(isinstance(layer.weight_quantizer, Split) for layer in network.layers().values())
    model = of_network(network, tmp_path)
    assert_same_network(model, opened(quest.export(model, tmp_path / "out")).unet)


@pytest.mark.parametrize("bits", [2, 3, 6])
def test_codes_without_gaps(bits: int, make_quantized: Callable[..., Any], tmp_path: Path) -> None:
    """The file is as small as its bits say, and a folder that diffusers saves again is the same."""
    model = of_network(make_quantized(f"w{bits}a8"), tmp_path)
    pipeline = opened(quest.export(model, tmp_path / "out"))
    assert_same_network(model, pipeline.unet)
    for name, layer in packed_layers(pipeline.unet).items():
        assert layer.codes.numel() == -(-layer.description.inputs * layer.description.shape[0] // 8) * bits, name
    pipeline.save_pretrained(tmp_path / "again")
    assert_same_network(model, opened(tmp_path / "again").unet)


def of_network(network: Any, tmp_path: Path) -> QuantizedModel:
    """A model around a quantized network, on a schedule of its number of steps."""
    around = Denoiser(network.network, DDIMScheduler(clip_sample=False))
    sampler = SamplerSettings(steps=network.recipe.steps)
    return QuantizedModel(Checkpoint(network, "nearest", sampler, inputs={"model": "0" * 64}), around)


def test_a_sampler_with_a_correction_and_bits_of_steps(
    denoiser: Denoiser, calibration: Calibration, settings: DatasetSettings, tmp_path: Path
) -> None:
    """PTQD's: activation widths by step, and what its sampler takes off the prediction."""
    recipe = make_recipe(settings, Bits.parse("w4a8"), 2, lower=(5,))
    network = QuantizedNetwork(denoiser.network, recipe, denoiser.example())
    for width in recipe.widths:
        network.use([width] * 4)
        calibrate_activations(network, calibration)
    network.use([8, 5, 8, 5])
    correction = Correction(torch.tensor([0.1, -0.1, 0.2, 0.0]), torch.randn(4, 1), torch.ones(4))
    checkpoint = Checkpoint(network, "ptqd", settings.sampler, correction=correction, inputs={"model": "0" * 64})
    model = QuantizedModel(checkpoint, denoiser)
    unet = opened(quest.export(model, tmp_path / "ptqd")).unet
    x, _ = inputs(model)
    for step, timestep in enumerate(model.around.sampler(model.sampler).timesteps.tolist()):
        network.set_step(step)
        with torch.no_grad():
            expected = correction.noise(network(x, timestep).sample, step)
            torch.testing.assert_close(unet(x, timestep).sample, expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(unet(x, timestep, return_dict=False)[0], expected, rtol=1e-5, atol=1e-5)


def test_size_is_that_of_the_bit_account(digits_file: Path, tmp_path: Path) -> None:
    """Of the digits model, where the header of the file weighs most; zero points are stored in fewer bits than the
    account counts, so a network of many scales is smaller."""
    few: dict[str, Any] = FEW | {"settings": {"sets": 4}}
    model = quest.quantize(denoisers.load(digits_file), "w4a8", "nearest", **few)
    written = quest.export(model, tmp_path / "digits") / "unet/diffusion_pytorch_model.safetensors"
    account = model.account()["weight_mib"] * 2**20
    assert 0.97 * account < written.stat().st_size < 1.03 * account


def test_a_scale_of_many_zero_points_is_stored_once(make_quantized: Callable[..., Any], tmp_path: Path) -> None:
    network = make_quantized("w4a4", **OFFSETS, sets=4)
    sites = list(network.sites().values())
    folder = quest.export(of_network(network, tmp_path), tmp_path / "out")
    stored = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    assert stored[f"{TABLES}.scales"].shape == (4, len(sites))
    assert stored[f"{TABLES}.zero_points"].shape == (4, sum(site.zero_point[0].numel() for site in sites))


@pytest.fixture(scope="module")
def multiplied(make_quantized: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    return of_network(make_quantized("w4a4", **MULTIPLES, sets=4), tmp_path_factory.mktemp("multiplied"))


def test_multiples_are_stored_beside_zero_points(multiplied: QuantizedModel, tmp_path: Path) -> None:
    """A byte for each, in a folder of the third format, which diffusers saves again as it is."""
    folder = quest.export(multiplied, tmp_path / "out")
    described = json.loads((folder / "unet/config.json").read_text())["quantization_config"]
    stored = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    sites = [site for site in multiplied.network.sites().values() if site.multiple is not None]
    places = sum(site.multiple[0].numel() for site in sites if site.multiple is not None)
    assert described["format"] == 3
    assert described["tables"]["multiple_places"] == places
    assert stored[f"{TABLES}.scales"].shape == (4, len(multiplied.network.sites()))
    assert stored[f"{TABLES}.multiples"].dtype == torch.uint8
    assert stored[f"{TABLES}.multiples"].shape == (4, places)
    assert stored[f"{TABLES}.multiples"].unique().tolist() == list(range(1, 9))
    edges = {name: described["layers"][name]["input"][0] for name in ("conv_in", "conv_out")}
    assert all("multiple_at" not in site for site in edges.values())
    pipeline = opened(folder)
    assert_same_network(multiplied, pipeline.unet)
    pipeline.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again/unet/config.json").read_text())["quantization_config"]
    assert again == described
    assert_same_network(multiplied, opened(tmp_path / "again").unet)


def test_folders_without_multiples_are_as_they_were(folder: Path) -> None:
    described = json.loads((folder / "unet/config.json").read_text())["quantization_config"]
    assert described["format"] == 1
    assert "multiple" not in json.dumps(described)
    assert f"{TABLES}.multiples" not in load_file(folder / "unet/diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("name", ["bedrooms_ldm4", "imagenet_ldm4"])
def test_multiples_of_the_operands_of_attention(name: str, tmp_path: Path) -> None:
    """Channels of a head, in networks whose heads the config says and does not say, among them of a context."""
    how = FEW | {"quantizer": FEW["quantizer"] | MULTIPLES}
    model = quest.quantize(
        GOLDEN / f"{name}.ckpt", "w4a4", "nearest", architecture=GOLDEN / f"{name}.json", **how, classes=None
    )
    unet = opened(quest.export(model, tmp_path / name)).unet
    assert_same_network(model, unet)
    operands = [sites for sites in unet.config.quantization_config.description.attention.values() if sites]
    assert operands
    for sites in operands:
        for operand in ("q", "k", "v"):
            assert sites[operand].layout == (1, 1, 1)
            assert sites[operand].zero_layout == (1, 1, len(sites[operand].multiples))
        assert sites["probabilities"].multiple_at is None


def resealed(folder: Path, tensors: dict[str, torch.Tensor], **tables: Any) -> Path:
    """``folder`` with other tensors and another description of its tables, sealed as if they were its own."""
    from safetensors.torch import save_file

    from quest.deploy.packed import seal

    file = folder / "unet/config.json"
    config = json.loads(file.read_text())
    config["quantization_config"]["tables"] |= tables
    file.write_text(json.dumps(config))
    digest = seal.digest(tensors, config["quantization_config"])
    save_file(tensors, folder / "unet/diffusion_pytorch_model.safetensors", {"format": "pt", seal.KEY: digest})
    return folder


def test_multiples_that_are_missing_or_misshapen(multiplied: QuantizedModel, tmp_path: Path) -> None:
    folder, name = quest.export(multiplied, tmp_path / "x"), f"{TABLES}.multiples"
    tensors = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    table = tensors[name]
    places = table.shape[1]
    with pytest.raises(ArtifactError, match=r"quest_tables\.multiples: missing from the weights, with 0 more"):
        opened(resealed(folder, {key: tensor for key, tensor in tensors.items() if key != name}))
    with pytest.raises(ArtifactError, match=rf"{name}: found shape \(4, {places - 1}\), expected \(4, {places}\)"):
        opened(resealed(folder, tensors | {name: table[:, 1:].clone()}))
    with pytest.raises(ArtifactError, match=rf"{name}: found torch.int32, expected torch.uint8"):
        opened(resealed(folder, tensors | {name: table.int()}))
    for wrong in (0, places - 1):
        said = rf"quantization_config: .*multiple_places: found {wrong}, expected the {places} that are in use"
        with pytest.raises(ArtifactError, match=said):
            opened(resealed(folder, tensors, multiple_places=wrong))
    opened(resealed(folder, tensors, multiple_places=places))
    file = folder / "unet/config.json"
    file.write_text(file.read_text().replace('"format": 3', '"format": 2'))
    with pytest.raises(
        ArtifactError, match=r"quantization_config: .*format: found 2, expected 3 of a network with mult"
    ):
        opened(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scales_arrive_exactly_in_every_precision(folder: Path, dtype: torch.dtype) -> None:
    stored = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    unet = opened(folder, dtype=dtype).unet
    state = unet.state_dict()
    for name, tensor in stored.items():
        cast = tensor.is_floating_point() and not name.endswith((".weight_scale", ".scales"))
        assert torch.equal(state[name], tensor.to(dtype) if cast else tensor), name
    x = torch.randn(2, 1, 8, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        predicted, expected = unet(x, 500).sample, opened(folder).unet(x.float(), 500).sample
    assert predicted.dtype == dtype
    torch.testing.assert_close(predicted.float(), expected, rtol=0.1, atol=0.1)
    assert state[f"{TABLES}.scales"].dtype == torch.float32


def test_saved_again_it_is_the_same(folder: Path, tmp_path: Path) -> None:
    opened(folder).save_pretrained(tmp_path / "again")
    parts = [load_file(path / "unet/diffusion_pytorch_model.safetensors") for path in (folder, tmp_path / "again")]
    assert parts[0].keys() == parts[1].keys()
    assert all(torch.equal(parts[0][name], parts[1][name]) for name in parts[0])
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(opened(tmp_path / "again").unet(x, 1).sample, opened(folder).unet(x, 1).sample)


def test_the_timestep_chooses_the_scales(pixels: QuantizedModel, folder: Path) -> None:
    unet = opened(folder).unet
    timesteps = pixels.around.sampler(pixels.sampler).timesteps.tolist()  # 750, 500, 250, 0, in two sets
    tables = unet.get_submodule(TABLES)
    x = torch.zeros(2, 1, 8, 8)
    for timestep, step in {999: 0, 640: 0, 620: 1, 375: 1, 370: 2, 125: 2, 124: 3}.items():
        for given in (timestep, torch.tensor(timestep), torch.full((2,), timestep), torch.tensor([float(timestep)])):
            unet(x, given)
            assert tables.step.item() == step, f"{timestep} is nearest to {timesteps[step]}"
            assert torch.equal(tables.scale, tables.scales[step // 2])


@pytest.mark.parametrize("scheduler", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "DDPMScheduler"])
def test_any_scheduler_and_number_of_steps(tmp_path: Path, scheduler: str) -> None:
    import diffusers

    model = quest.quantize(
        GOLDEN / "bedrooms_ldm4.ckpt", "w8a8", "nearest", architecture=GOLDEN / "bedrooms_ldm4.json", **FEW
    )
    pipeline = opened(quest.export(model, tmp_path / "out"))
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config)
    drawn = pipeline(num_inference_steps=7, output_type="pt").images
    assert bool(torch.isfinite(drawn).all())


def test_adapters_and_gradients_on_top(folder: Path) -> None:
    """LoRA of peft wraps packed layers, leaves what they compute as it is at first, and is trained through them."""
    peft = pytest.importorskip("peft")
    unet = opened(folder).unet
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    before = unet(x, 500).sample.detach()
    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_v", "conv1", "conv_in"])
    unet = peft.inject_adapter_in_model(config, unet)
    after = unet(x, 500).sample
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    after.square().mean().backward()
    trained = {name: p.grad for name, p in unet.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    moved = [name for name, gradient in trained.items() if "lora_B" in name and gradient.abs().sum() > 0]
    assert any("conv_in" in name for name in moved), "gradients pass through the whole network"


def test_compiled(folder: Path) -> None:
    """Traced as one graph without a break, and the timestep still chooses the scales."""
    unet = opened(folder).unet
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(unet, backend="eager", fullgraph=True)
    with torch.no_grad():
        for timestep in (torch.tensor(750), torch.tensor(0)):
            torch.testing.assert_close(compiled(x, timestep).sample, unet(x, timestep).sample)


def test_offloaded_and_copied(folder: Path) -> None:
    import accelerate

    unet = opened(folder).unet
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = unet(x, 500).sample
        torch.testing.assert_close(copy.deepcopy(unet)(x, 500).sample, expected)
        torch.testing.assert_close(unet.to("cpu")(x, 500).sample, expected)
        accelerate.cpu_offload(unet, execution_device=torch.device("cpu"))
        assert next(iter(packed_layers(unet).values())).codes.device.type == "meta", "the weights are elsewhere"
        torch.testing.assert_close(unet(x, 500).sample, expected)


def test_another_precision_is_asked_for_when_loading(folder: Path) -> None:
    unet = opened(folder).unet
    for change in (unet.half, unet.float, lambda: unet.to(torch.bfloat16)):
        with pytest.raises(ValueError, match="dtype"):
            change()


def test_a_flipped_byte_anywhere_in_the_weights(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "x")
    file = tmp_path / "x/unet/diffusion_pytorch_model.safetensors"
    data = file.read_bytes()
    for where in (len(data) // 3, len(data) // 2, len(data) - 1, data.index(b"quest_sha256") + 20):
        flipped = bytearray(data)
        flipped[where] ^= 1
        file.write_bytes(flipped)
        # Of a header that is none diffusers says so itself, before anyone is asked.
        said = r"safetensors: (sha256 is|cannot be read)|Unable to load weights from checkpoint file"
        with pytest.raises((ArtifactError, OSError), match=said):
            opened(tmp_path / "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 4}, "quantization_config.format: found 4, this quest reads up to 3; install a newer quest"),
        ({"tables": None}, "quantization_config.tables: Field required"),
        ({"layers": {}}, "sha256 is"),
        ({"strange": 1}, "quantization_config.strange: Extra inputs are not permitted"),
    ],
)
def test_a_changed_description(folder: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    shutil.copytree(folder, tmp_path / "x")
    file = tmp_path / "x/unet/config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] |= change
    file.write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=re.escape(message)):
        opened(tmp_path / "x")


def test_tensors_that_are_missing(folder: Path, tmp_path: Path) -> None:
    """A folder without its tables, sealed as if that were all there is."""
    from safetensors.torch import save_file

    from quest.deploy.packed import seal

    shutil.copytree(folder, tmp_path / "x")
    file = tmp_path / "x/unet/diffusion_pytorch_model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if not name.startswith(TABLES)}
    described = json.loads((tmp_path / "x/unet/config.json").read_text())["quantization_config"]
    save_file(tensors, file, {"format": "pt", seal.KEY: seal.digest(tensors, described)})
    with pytest.raises(ArtifactError, match=r"quest_tables\.rows: missing from the weights, with 3 more"):
        opened(tmp_path / "x")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ArtifactError, match="it has no checksum of quest's"):
        opened(tmp_path / "x")


def test_it_is_written_whole_or_not_at_all(
    pixels: QuantizedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("kept")
    with pytest.raises(ArtifactError, match="the folder is not empty; choose another, or --force"):
        quest.export(pixels, full)
    with pytest.raises(ArtifactError, match="holds no pipeline"):
        quest.export(pixels, full, force=True)
    assert (full / "mine").read_text() == "kept"
    with pytest.raises(ArtifactError, match="a file is there"):
        quest.export(pixels, full / "mine")

    quest.export(pixels, tmp_path / "out")
    (tmp_path / "out/old").touch()
    quest.export(pixels, tmp_path / "out", force=True)
    assert not (tmp_path / "out/old").exists()

    def fail(*_: Any) -> str:
        raise OSError("no space left")

    monkeypatch.setattr("quest.deploy.card.text", fail)
    with pytest.raises(ArtifactError, match="could not be written"):
        quest.export(pixels, tmp_path / "other")
    with pytest.raises(ArtifactError, match="could not be written"):
        quest.export(pixels, tmp_path / "out", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "out"]
    opened(tmp_path / "out")


def test_the_card(pixels: QuantizedModel, tmp_path: Path) -> None:
    import yaml

    metrics = {"images": 1000, "psnr": 30.5, "mse": 1e-3, "fid": None, "extractor": "x"}
    written = quest.export(pixels, tmp_path / "out", base_model="someone/tiny", metrics=metrics) / "README.md"
    _, header, body = written.read_text().split("---", 2)
    assert yaml.safe_load(header) == {
        "library_name": "diffusers",
        "tags": ["quest", "nearest", "w4a8", "quantized"],
        "base_model": "someone/tiny",
        "base_model_relation": "quantized",
    }
    assert "import quest" in body
    assert "PSNR 30.50 dB" in body
    assert "Not quantized: biases, " in body


def test_the_command(pixels: QuantizedModel, tmp_path: Path) -> None:
    quest.save(pixels, tmp_path / "tiny.safetensors")
    run = CliRunner().invoke(main, ["export", str(tmp_path / "tiny.safetensors"), "--output", str(tmp_path / "out")])
    assert run.exit_code == 0, run.output
    assert "MiB of packed network; `import quest`" in run.output
    assert_same_network(pixels, opened(tmp_path / "out").unet)
    run = CliRunner().invoke(main, ["export", str(tmp_path / "tiny.safetensors"), "--output", str(tmp_path / "out")])
    assert run.exit_code == 1
    assert "the folder is not empty" in run.output


def test_the_lines_of_the_documentation(pixels: QuantizedModel, tmp_path: Path) -> None:
    (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/deploy.md").read_text(), flags=re.DOTALL)
    assert len(lines.splitlines()) <= 10
    quest.export(pixels, tmp_path / "digits-w4a8")
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*.png"))) == 16
    assert "'conv_in': " in done.stdout


@pytest.mark.parametrize("first", ["import quest, diffusers", "import diffusers.quantizers.auto, quest"])
def test_in_whatever_order_it_is_imported(folder: Path, first: str) -> None:
    program = (
        f"{first}\nfrom diffusers import DiffusionPipeline\n"
        f"pipeline = DiffusionPipeline.from_pretrained({str(folder)!r})\n"
        "print(type(pipeline.unet.conv_in).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "PackedConv2d", done.stderr


def test_without_importing_it(folder: Path) -> None:
    """What diffusers says is what the card and the documentation explain."""
    program = f"from diffusers import DiffusionPipeline\nDiffusionPipeline.from_pretrained({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    message = "Unknown quantization type, got quest"
    assert message in done.stderr
    assert message in (folder / "README.md").read_text()
