"""Trials at true size without any download: random weights in the published layouts, and a walk through every stage.

Nothing that these write means anything; they show that models of the papers' sizes go through, how long each stage
takes and how much memory it needs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from torch import Tensor, nn

from quest import artifacts
from quest.config.dataset import DatasetSettings
from quest.config.values import Bits
from quest.deploy import start
from quest.diffusion import denoiser as denoisers
from quest.diffusion import sampling
from quest.learning import calibration
from quest.methods import quest
from quest.quantization.network import QuantizedNetwork
from quest.sources import compvis
from quest.sources.compvis import Architecture
from quest.stages import calibrate, import_model

_RANDOM = 1_000_003  # numbers drawn; a prime, so that they come differently in every row


class StageCost(NamedTuple):
    """What a stage took. peak_mib: of the accelerator's memory, 0 without one."""

    stage: str
    seconds: float
    peak_mib: float
    notes: dict[str, Any]


def random_checkpoint(name: str, output: Path, architecture: Path | None = None) -> None:
    """Write a published model's checkpoint with random weights: a CompVis file, or the folder of a diffusers pipeline.

    name: of a dataset. architecture: of its checkpoint, if that is what its model comes as.
    """
    if architecture is not None:
        with artifacts.atomic(output) as partial:
            torch.save({"state_dict": random_state(compvis.read_architecture(architecture))}, partial)
    elif name == "cifar10":
        _write_cifar10(output)
    elif name == "stable-diffusion":
        _write_stable_diffusion(output)
    else:
        raise ValueError(f"{name}: no architecture in its protocol, and neither cifar10 nor stable-diffusion")


def random_state(architecture: Architecture) -> dict[str, Tensor]:
    """A state dict of every weight that a checkpoint of ``architecture`` has, small enough that nothing overflows."""
    parts: list[tuple[nn.Module, Any]] = [
        (compvis.build_unet(architecture), compvis.unet_names(architecture)),
        (compvis.build_autoencoder(architecture), compvis.autoencoder_names(architecture)),
    ]
    if architecture.n_classes:
        parts.append((compvis.build_conditioner(architecture), compvis.CLASSES.__add__))
    shapes = {old: shape for network, name in parts for old, shape in compvis.stored_shapes(network, name)}
    state = _weights(shapes)
    if architecture.use_ema:
        state |= {compvis.average_of(old): tensor for old, tensor in state.items() if old.startswith(compvis.UNET)}
    if architecture.scale_by_std:
        state["scale_factor"] = torch.tensor(0.2)
    return state


def cifar10_unet() -> UNet2DModel:
    """google/ddpm-cifar10-32's network without weights, on the meta device."""
    with torch.device("meta"):
        return UNet2DModel(
            sample_size=32,
            block_out_channels=(128, 256, 256, 256),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=None,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            norm_eps=1e-6,
        )


def stable_diffusion_unet() -> UNet2DConditionModel:
    """Stable Diffusion v1's network without weights, on the meta device."""
    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768)


def stable_diffusion_autoencoder() -> AutoencoderKL:
    """Stable Diffusion v1's first stage without weights, on the meta device."""
    config: dict[str, Any] = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "sample_size": 512,
    }
    with torch.device("meta"):
        return AutoencoderKL(**config)


def small(settings: DatasetSettings, source: Path, prompts: Path) -> DatasetSettings:
    """A protocol cut down to two optimizer steps a stage and two images.

    prompts: file that is written, and drawn for, where the protocol has prompts.
    """
    content = artifacts.plain(settings)
    content["source"], content["source_sha256"] = str(source), None
    content["sampler"] |= {"steps": 4, "timesteps": None}
    content["calibration"] = {"steps": 2, "samples_per_step": 2}
    once = {"epochs": 1, "samples": 1, "batch_size": 1}
    content["methods"] = {
        "quest": content["methods"]["quest"]
        | {"sets": 2}
        | {f"{stage}_{key}": value for stage in ("tla", "cma") for key, value in once.items()}
    }
    for method in set(content["methods"]) - {"quest"}:
        content["methods"][method] = {"sets": 1}
    content["evaluation"] = {"images": 2, "batch_size": 2}
    if settings.condition is not None and settings.condition.prompts is not None:
        prompts.write_text("a cat\na dog\n", encoding="utf-8")
        content["condition"] = {"prompts": str(prompts)}
    return DatasetSettings.model_validate(content)


def walk(settings: DatasetSettings, folder: Path, device: torch.device) -> Iterator[StageCost]:
    """Take the source of a `small` protocol through every stage at 4 bits, and say what each took.

    Import, calibrate, quantize (searched weight scales), QuEST's two finetuning stages from there (no learned rounding
    before), two images.
    """
    model, recorded = folder / "denoiser.safetensors", folder / "calibration.safetensors"
    with _measured("import", device) as cost:
        import_model.run("", settings, None, model)
    yield cost()
    with _measured("calibrate", device) as cost:
        calibrate.run("", settings, model, 0, recorded, device)
    yield cost()
    with _measured("quantize", device) as cost:
        denoiser = denoisers.load(model, device)
        data = calibration.load(recorded, denoiser, settings).to(device)
        parameters = sum(p.numel() for p in denoiser.network.parameters())
        recipe = start.recipe(settings, Bits(4, 4), settings.methods.quest.sets)
        network = QuantizedNetwork(denoiser.network, recipe, denoiser.example())
    yield cost(parameters=parameters, layers=len(network.layers()))
    chosen = settings.methods.quest
    with _measured("finetune", device) as cost:
        quest.quantize(network, data, chosen, 0)
    stages = quest.time_embedding_alignment(network, chosen), quest.attention_alignment(network, chosen)
    yield cost(**{stage.name: sum(p.numel() for p in stage.weights()) for stage in stages})
    with _measured("sample", device) as cost, network.frozen():
        images = sampling.draw(denoiser, network, settings, 0, range(settings.evaluation.images), device)
    yield cost(images=list(images.shape))


@contextmanager
def _measured(stage: str, device: torch.device) -> Iterator[Any]:
    accelerated = device.type == "cuda"
    if accelerated:
        torch.cuda.reset_peak_memory_stats(device)
    started, ended = time.perf_counter(), None

    def cost(**notes: Any) -> StageCost:
        assert ended is not None
        peak = torch.cuda.max_memory_allocated(device) / 2**20 if accelerated else 0.0
        return StageCost(stage, ended - started, peak, notes)

    yield cost
    if accelerated:
        torch.cuda.synchronize(device)
    ended = time.perf_counter()


def _weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Random weights that keep the size of what passes through: norms 1, biases 0, others by their fan-in."""
    drawn = torch.randn(_RANDOM, generator=torch.Generator().manual_seed(0))
    tensors = {}
    for name, shape in shapes.items():
        if len(shape) < 2:
            tensors[name] = torch.full(shape, float(name.endswith("weight")))
        else:
            size = torch.Size(shape).numel()
            repeated = drawn.repeat(-(-size // _RANDOM))[:size]
            tensors[name] = (repeated * (size / shape[0]) ** -0.5).view(shape)
    return tensors


def _filled(network: Any) -> Any:
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    network.load_state_dict(_weights(shapes), assign=True)
    return network


def _write_index(folder: Path, **parts: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(
        json.dumps({name: ["", kind] for name, kind in parts.items()}), encoding="utf-8"
    )


def _write_cifar10(folder: Path) -> None:
    _write_index(folder, unet="UNet2DModel", scheduler="DDPMScheduler")
    _filled(cifar10_unet()).save_pretrained(folder)
    DDPMScheduler().save_pretrained(folder)


def _write_stable_diffusion(folder: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    _write_index(
        folder,
        unet="UNet2DConditionModel",
        vae="AutoencoderKL",
        text_encoder="CLIPTextModel",
        tokenizer="CLIPTokenizer",
        scheduler="PNDMScheduler",
    )
    words = [*("a</w>", "b</w>", "c</w>"), *(f"word{i}</w>" for i in range(49_403)), "<|startoftext|>", "<|endoftext|>"]
    encoder = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    _filled(stable_diffusion_unet()).save_pretrained(folder / "unet")
    _filled(stable_diffusion_autoencoder()).save_pretrained(folder / "vae")
    CLIPTextModel(encoder).save_pretrained(folder / "text_encoder")
    PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir(exist_ok=True)
    (tokenizer / "vocab.json").write_text(
        json.dumps({word: number for number, word in enumerate(words)}), encoding="utf-8"
    )
    (tokenizer / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    (tokenizer / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>", "model_max_length": 77}),
        encoding="utf-8",
    )
