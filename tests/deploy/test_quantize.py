"""`quest.quantize`: the same network as the workflow's stages make, from whatever form a model comes in."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

import quest
from quest.artifacts import ArtifactError, load_tensors
from quest.config.dataset import DatasetSettings
from quest.config.values import Bits
from quest.deploy.quantize import settings_of
from quest.diffusion.conditioners import ClassEmbedder, ClassLabels, Conditioner, TextEncoder
from quest.diffusion.denoiser import Denoiser
from quest.stages import calibrate, finetune, reconstruct, sample

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parents[1] / "golden"
QUICK: dict[str, Any] = {
    "method": "nearest",
    "steps": 2,
    "calibration": {"samples_per_step": 2},
    "quantizer": {"weight_search": "max"},
    "device": "cpu",
}


@pytest.fixture
def pipeline(make_unet: Callable[..., UNet2DModel]) -> DDPMPipeline:
    return DDPMPipeline(make_unet(), DDPMScheduler())


@pytest.mark.parametrize("method", ["quest", "ptqd"])  # learned rounding and finetuning; a correction of the sampler
def test_the_same_as_the_stages(
    method: str, model_file: Path, make_settings: Callable[..., DatasetSettings], tmp_path: Path
) -> None:
    settings = make_settings(sampler={"eta": 1.0}, evaluation={"images": 5, "shards": 1, "batch_size": 3})
    recorded, learned, checkpoint, samples, own = (
        tmp_path / f"{name}.safetensors" for name in ("recorded", "learned", "checkpoint", "samples", "own")
    )
    calibrate.run("tiny", settings, model_file, 3, recorded, CPU)
    reconstruct.run("tiny", settings, model_file, 4, 3, "blocks", "common", recorded, learned, CPU)
    finetune.run("tiny", settings, model_file, method, "w4a8", 3, recorded, learned, checkpoint, CPU)
    sample.run("tiny", settings, model_file, checkpoint, 5, 0, samples, CPU)

    random_state = torch.get_rng_state()
    model = quest.quantize(
        model_file,
        "w4a8",
        method,
        sampler=settings.sampler,
        calibration=settings.calibration,
        quantizer=settings.quantizer,
        reconstruction=settings.reconstruction,
        settings=settings.method(method),
        seed=3,
        device="cpu",
    )
    assert torch.equal(torch.get_rng_state(), random_state), "the caller's random numbers are left alone"
    images = load_tensors(samples, "samples").tensors["images"]
    assert torch.equal(model.sample(5, seed=5, batch_size=3), images)
    model.save(own)
    staged, written = load_tensors(checkpoint, "checkpoint"), load_tensors(own, "checkpoint")
    assert staged.tensors.keys() == written.tensors.keys()
    for name, tensor in staged.tensors.items():
        assert torch.equal(written.tensors[name], tensor), name
    assert written.manifest.settings == staged.manifest.settings
    assert written.manifest.notes == staged.manifest.notes
    loaded = quest.load(checkpoint, model=model_file, device="cpu")
    assert torch.equal(loaded.sample(5, seed=5, batch_size=3), images)


def test_a_pipeline_stays_as_it_is_and_gives_the_network_of_its_folder(pipeline: DDPMPipeline, tmp_path: Path) -> None:
    unet: Any = pipeline.unet.train()
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    model = quest.quantize(pipeline, "w4a4", **QUICK)
    assert unet.training
    assert unet.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())
    pipeline.save_pretrained(tmp_path)
    images = model.sample(2)
    assert torch.equal(quest.quantize(tmp_path, "w4a4", **QUICK).sample(2), images)
    assert not torch.equal(quest.quantize(tmp_path, "w4a4", seed=1, **QUICK).sample(2), images)


def test_full_and_half_precision(pipeline: DDPMPipeline, tmp_path: Path) -> None:
    pipeline.unet.half()
    model = quest.quantize(pipeline, "w8a8", **QUICK)
    assert model.around.network.dtype == torch.float32  # computed in full precision
    model.save(tmp_path / "w8a8.safetensors")
    kept = load_tensors(tmp_path / "w8a8.model.safetensors", "model").tensors
    assert {tensor.dtype for tensor in kept.values()} == {torch.float16}, "kept as it came"
    assert torch.equal(quest.load(tmp_path / "w8a8.safetensors", device="cpu").sample(2), model.sample(2))


def test_a_published_checkpoint() -> None:
    source = GOLDEN / "imagenet_ldm4.ckpt"
    model = quest.quantize(source, architecture=source.with_suffix(".json"), **QUICK)
    assert model.checkpoint.condition == "class"
    assert model.sample(1).dtype == torch.uint8
    with pytest.raises(ArtifactError, match="a checkpoint does not say what it is of; name its architecture"):
        quest.quantize(source, **QUICK)


def conditional(conditioner: Conditioner) -> Denoiser:
    """A tiny model in pixel space, of contexts with 8 channels."""
    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=4,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("UpBlock2D",),
        attention_head_dim=2,
        cross_attention_dim=8,
        norm_num_groups=4,
    )
    return Denoiser(network, DDIMScheduler(clip_sample=False), None, conditioner)


def transformer() -> Denoiser:
    """A tiny model in pixel space that embeds its 3 classes itself."""
    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=1,
        num_layers=1,
        sample_size=4,
        num_embeds_ada_norm=3,
    )
    return Denoiser(network.eval(), DDIMScheduler(clip_sample=False), None, ClassLabels(3))


@pytest.mark.parametrize("make", [lambda: conditional(ClassEmbedder(4, 8)), transformer], ids=["unet", "transformer"])
def test_classes(make: Callable[[], Denoiser], tmp_path: Path) -> None:
    source = make()
    model = quest.quantize(source, **QUICK, guidance_scale=50.0)
    assert model.sampler.guidance_scale == 50.0
    in_turn = model.sample(5)
    assert torch.equal(in_turn, model.sample([0, 1, 2, 0, 1]))
    assert not torch.equal(in_turn, model.sample([0, 1, 2, 2, 2]))
    model.save(tmp_path / "checkpoint.safetensors")
    assert torch.equal(quest.load(tmp_path / "checkpoint.safetensors", device="cpu").sample(5), in_turn)
    with pytest.raises(ValueError, match="prompts: given, but the model takes classes; leave them out"):
        quest.quantize(source, **QUICK, prompts=["a cat"])
    with pytest.raises(ValueError, match="condition: class 3; the model has classes 0 to 2"):
        quest.quantize(source, **QUICK, classes=[3])


def test_what_cannot_be_packed_is_refused_before_anything_is_learned(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a model of classes in pixel space has no pipeline; expected one of latents"):
        quest.convert(transformer(), tmp_path / "folder", classes=3)
    source = transformer()
    source.conditioner = None
    with pytest.raises(ValueError, match="no pipeline is written here for a DiTTransformer2DModel with its conditions"):
        quest.convert(source, tmp_path / "folder")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def text_model() -> Denoiser:
    """A tiny text-conditional model."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    tokenizer = Tokenizer(WordLevel({"end": 0, "cat": 1, "dog": 2, "?": 3}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=3, pad_id=0, pad_token="end")
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CLIPTextConfig(vocab_size=4, max_position_embeddings=3, bos_token_id=0, eos_token_id=0, **sizes)
    return conditional(TextEncoder(CLIPTextModel(config), tokenizer))


def test_prompts(text_model: Denoiser, tmp_path: Path) -> None:
    model = quest.quantize(text_model, **QUICK, prompts=["cat", "dog"])
    assert model.sample(["cat", "dog"]).shape == (2, 1, 4, 4)
    (tmp_path / "prompts.txt").write_text("cat\ndog\n")
    again = quest.quantize(text_model, **QUICK, prompts=tmp_path / "prompts.txt")
    assert torch.equal(again.sample(["cat", "dog"]), model.sample(["cat", "dog"]))
    model.save(tmp_path / "checkpoint.safetensors")
    loaded = quest.load(tmp_path / "checkpoint.safetensors", device="cpu")
    assert loaded.checkpoint.condition == "text"
    assert torch.equal(loaded.sample(["dog"]), model.sample(["dog"]))
    with pytest.raises(
        ValueError, match="images: found 2; the model draws text, so give a list with a prompt for each"
    ):
        model.sample(2)
    with pytest.raises(ValueError, match="images: found the text 'cat'; expected a list"):
        model.sample("cat")
    for wrong in (None, "a cat", []):
        with pytest.raises(ValueError, match=re.escape(f"prompts: found {wrong!r}; the model draws what a text says")):
            quest.quantize(text_model, **QUICK, prompts=wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": "w4"}, "bits: 'w4' is not w<weight bits>a<activation bits>"),
        ({"bits": "w32a32"}, "bits: w32a32 is full precision; expected bits from 2 to 8"),
        ({"method": "quset"}, "method: unknown 'quset' (did you mean 'quest'?); known are "),
        ({"method": "quest+no-global-loss"}, "method: unknown 'quest+no-global-loss'"),
        ({"sampler": {"step": 4}}, "quest.quantize: sampler.step: unknown 'step' (did you mean 'steps'?)"),
        ({"steps": "many"}, "quest.quantize: sampler.steps: found 'many'; a valid integer"),
        ({"eta": -1.0}, "quest.quantize: sampler.eta: found -1.0; greater than or equal to 0 is expected"),
        (
            {"calibration": {"steps": 3}},
            "quest.quantize: calibration.steps is 3, which does not divide sampler.steps = 2",
        ),
        (
            {"settings": {"sets": 3}},
            "quest.quantize: methods.nearest.sets is 3, which does not divide sampler.steps = 2",
        ),
        ({"settings": {"epochs": 3}}, "quest.quantize: methods.nearest.epochs: unknown 'epochs'"),
        ({"quantizer": {"softmax_bits": 40}}, "quest.quantize: quantizer.softmax_bits: found 40"),
        ({"classes": [1]}, "classes: given, but the model takes no condition; leave them out"),
        ({"device": "graphics"}, "'graphics' is not a device"),
        ({"model": 3}, "model: found 3; expected a diffusers pipeline, or the path of one"),
        ({"model": "nowhere/at/all"}, "nowhere/at/all: no such file; put the folder"),
    ],
)
def test_what_cannot_be_used_is_named(pipeline: DDPMPipeline, changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"model": pipeline, **QUICK}
    with pytest.raises(ValueError, match=re.escape(message)):
        quest.quantize(**(given | changes))


@pytest.mark.parametrize(
    ("method", "steps", "recorded", "sets"),
    [
        ("quest", 20, 20, 20),
        ("quest", 4, 4, 4),
        ("quest", 50, 25, 25),  # as the protocol of Stable Diffusion has it
        ("quest", 200, 20, 20),  # as that of the bedrooms
        ("quest", 23, 23, 23),
        ("efficientdm", 100, 20, 20),  # as that of CIFAR-10: a set for each recorded step
        ("ptqd", 50, 25, 1),
    ],
)
def test_default_counts_divide_the_steps(method: str, steps: int, recorded: int, sets: int) -> None:
    empty: dict[str, Any] = {"calibration": {}, "own": {}, "quantizer": {}, "reconstruction": {}}
    settings = settings_of(method, sampler={"steps": steps}, **empty)
    assert (settings.calibration.steps, settings.method(method).sets) == (recorded, sets)


def test_what_is_returned_says_what_it_is(pipeline: DDPMPipeline) -> None:
    model = quest.quantize(pipeline, "w4a8", **QUICK)
    assert repr(model) == "<nearest w4a8, 2 ddim steps>"
    assert model.bits == Bits(4, 8)
    account = model.account()
    assert account["full_precision_layers"] == 0
    network = model.network
    sizes = {name: layer.weight.numel() for name, layer in network.layers().items()}
    edges = sizes["conv_in"] + sizes["conv_out"]  # of 8 bits by the common policy
    assert account["mean_weight_bits"] == pytest.approx(4 + 4 * edges / sum(sizes.values()))


def test_a_pruned_network_without_a_middle(make_unet: Callable[..., UNet2DModel]) -> None:
    pipeline = DDPMPipeline(make_unet(mid_block_type=None), DDPMScheduler())
    model = quest.quantize(pipeline, "w8a8", **QUICK)
    assert not [name for name in model.network.layers() if name.startswith("mid_block")]
    assert model.sample(2).shape == (2, 1, 8, 8)
