"""Latent models with a class or a text go through every stage of every method, and come back from their artifacts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from quest import artifacts, methods
from quest.artifacts import Manifest
from quest.config.dataset import DatasetSettings
from quest.config.methods import METHODS
from quest.diffusion import denoiser as denoisers
from quest.diffusion.conditioners import ClassEmbedder, ClassLabels, Conditioner, TextEncoder
from quest.diffusion.denoiser import Denoiser
from quest.diffusion.first_stage import FirstStage
from quest.learning import calibration
from quest.stages import calibrate, finetune, reconstruct, sample

CPU = torch.device("cpu")
CHANNELS = 12


@dataclass(frozen=True)
class Case:
    """A model, its protocol, and what its stages wrote."""

    model: Denoiser
    settings: DatasetSettings
    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def recorded(self) -> Path:
        return self.folder / "calibration.safetensors"


def text_encoder() -> TextEncoder:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = Tokenizer(WordLevel({"end": 0, "a": 1, "cat": 2, "dog": 3, "?": 4}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=5, pad_id=0, pad_token="end")
    config = CLIPTextConfig(
        vocab_size=5,
        hidden_size=CHANNELS,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=5,
        bos_token_id=0,
        eos_token_id=0,
    )
    return TextEncoder(CLIPTextModel(config), tokenizer)


@pytest.fixture(scope="module", params=["class", "text", "transformer"])
def case(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    make_settings: Callable[..., DatasetSettings],
) -> Case:
    """Class-conditional with a VQ model by DDIM, a U-Net or a transformer that embeds classes itself, or
    text-conditional with a KL model by PLMS; all guided."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    network: Any = UNet2DConditionModel(
        sample_size=4,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("UpBlock2D",),
        attention_head_dim=2,
        cross_attention_dim=CHANNELS,
        norm_num_groups=4,
    )
    shared: dict[str, Any] = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 3,
        "norm_num_groups": 4,
    }
    conditioner: Conditioner
    if request.param == "class":
        conditioner, condition, kind = ClassEmbedder(6, CHANNELS), {"classes": 5}, "ddim"
        autoencoder: Any = VQModel(**shared, num_vq_embeddings=16)
    elif request.param == "transformer":
        network = DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=3,
            num_layers=2,
            sample_size=4,
            num_embeds_ada_norm=5,
        )
        conditioner, condition, kind = ClassLabels(5), {"classes": 5}, "ddim"
        autoencoder = VQModel(**shared, num_vq_embeddings=16)
    else:
        prompts = folder / "prompts.txt"
        prompts.write_text("a cat\na dog\na cat a dog\n")
        conditioner, condition, kind = text_encoder(), {"prompts": str(prompts)}, "plms"
        autoencoder = AutoencoderKL(**shared)
    schedule = DDIMScheduler(
        beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1, beta_end=0.0195
    )
    model = Denoiser(network.eval(), schedule, FirstStage(autoencoder.eval(), 0.5), conditioner.eval())
    settings = make_settings(
        image_channels=3, condition=condition, sampler={"steps": 4, "kind": kind, "guidance_scale": 2.0}
    )
    case = Case(model, settings, folder)
    denoisers.save(case.file, model, Manifest(kind="model"))
    calibrate.run("tiny", settings, case.file, 0, case.recorded, CPU)
    return case


@torch.no_grad()
def test_round_trip(case: Case) -> None:
    loaded = denoisers.load(case.file)
    assert (loaded.conditioner is None, case.model.conditioner is None) == (False, False)
    assert loaded.conditioner is not None
    assert case.model.conditioner is not None
    asked: Any = [None, 3, 0] if case.settings.condition and case.settings.condition.classes else [None, "a dog", "x"]
    context = loaded.conditioner(asked)
    assert torch.equal(context, case.model.conditioner(asked))
    assert len(context.unique(dim=0)) == 3
    x, t = torch.randn(3, 3, 4, 4), torch.tensor([1, 500, 999])
    torch.testing.assert_close(loaded.network(x, t, context).sample, case.model.network(x, t, context).sample)
    torch.testing.assert_close(loaded.decode(x), case.model.decode(x), atol=1e-5, rtol=1e-4)
    assert loaded.decode(x).shape == (3, 3, 8, 8)


def test_calibration_has_every_state_under_its_condition_and_under_none(case: Case) -> None:
    denoiser = denoisers.load(case.file)
    recorded = calibration.load(case.recorded, denoiser, case.settings)
    assert recorded.contexts is not None
    assert recorded.null is not None
    assert len(recorded) == 2 * 8
    samples = recorded.samples(4)
    x, _, context, _ = samples.inputs(torch.arange(4))
    assert context is not None
    assert torch.equal(x[0], x[1])
    assert torch.equal(context[0], recorded.contexts[0])
    assert torch.equal(context[1], recorded.null[0])
    assert torch.equal(context[3], recorded.null[0])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_through(case: Case, method: str, tmp_path: Path) -> None:
    learned = None
    if rounding := methods.starts_from(method, case.settings.method(method)):
        learned = case.folder / f"{rounding.grouping}.safetensors"
        if not learned.exists():
            reconstruct.run("tiny", case.settings, case.file, 4, 0, *rounding, case.recorded, learned, CPU)
    checkpoint, samples, plain = (tmp_path / f"{name}.safetensors" for name in ("checkpoint", "samples", "plain"))
    finetune.run("tiny", case.settings, case.file, method, "w4a8", 0, case.recorded, learned, checkpoint, CPU)
    sample.run("tiny", case.settings, case.file, checkpoint, 0, 0, samples, CPU)
    sample.run("tiny", case.settings, case.file, None, 0, 0, plain, CPU)
    images, teacher = (artifacts.load_tensors(file, "samples").tensors["images"] for file in (samples, plain))
    assert images.shape == teacher.shape == (3, 3, 8, 8)
    assert not torch.equal(images, teacher), "4 bits change the images"
    assert (images.float() - teacher.float()).abs().mean() < 64
