"""Training of latent models on drawn shapes: unconditional, of classes and of prompts, in a few steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

from quest.artifacts import load_tensors
from quest.bench import embedded
from quest.config.dataset import DatasetSettings
from quest.config.pretraining import AutoencoderSettings, ClipTrainingSettings
from quest.diffusion import denoiser as denoisers
from quest.diffusion.conditioners import ClassEmbedder, ClassLabels, TextEncoder
from quest.diffusion.denoiser import Denoiser
from quest.diffusion.sampling import draw, to_uint8
from quest.embedded import clip as clips
from quest.embedded import shapes, training
from quest.embedded.training import autoencoder, denoiser
from quest.embedded.training.clip import train_clip
from quest.metrics.clip import ClipScore
from quest.metrics.extractor import load_extractor
from quest.stages import pretrain, pretrain_clip, pretrain_denoiser

CPU = torch.device("cpu")
AUTOENCODER = {"channels": [8, 16], "latent_channels": 3, "batch_size": 8, "lr": 3e-3}
CLIP: dict[str, Any] = {"width": 16, "head_width": 8, "text_layers": 1, "vision_layers": 1, "steps": 2, "lr": 2e-3}
PRETRAIN: dict[str, Any] = {
    "unet": {"channels": [8, 16], "layers_per_block": 1, "attention": [False, True]},
    "steps": 2,
    "batch_size": 8,
    "images": 300,
    "classifier_steps": 2,
    "classifier_width": 16,
}
TINY: dict[str, Any] = {"real_images": "shapes", "image_size": 16, "image_channels": 3}


@pytest.fixture(scope="module")
def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    return shapes.draw("tests", range(256), 16)


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_first_stage_learns(kind: str, pictures: tuple[torch.Tensor, torch.Tensor]) -> None:
    torch.manual_seed(0)
    images, _ = pictures
    short, long = (
        autoencoder.train_autoencoder(
            images, AutoencoderSettings.model_validate(AUTOENCODER | {"kind": kind, "codes": 32, "steps": steps}), CPU
        )
        for steps in (1, 120)
    )
    assert long.notes["psnr"] > short.notes["psnr"] + 1.5
    assert long.latents.shape == (256, 3, 8, 8)
    assert long.latents.std().item() == pytest.approx(1, rel=1e-4)
    torch.testing.assert_close(long.first_stage.encode(images[:4].float() / 127.5 - 1), long.latents[:4])
    if kind == "vq":
        assert long.notes["codes_used"] > 24, "dead codes come to life"


def test_clip_learns_and_round_trips(pictures: tuple[torch.Tensor, torch.Tensor], tmp_path: Path) -> None:
    torch.manual_seed(0)
    images, labels = pictures
    settings = ClipTrainingSettings.model_validate(CLIP | {"steps": 60})
    model, accuracy = train_clip(images, labels, shapes.CAPTIONS, settings, CPU)
    assert accuracy > 5 / shapes.LABELS, "five times chance"
    path = tmp_path / "clip.safetensors"
    model.model.half().float()  # weights are stored in half precision
    sha256 = clips.save(path, model, training.manifest(_pretrain())).sha256
    loaded = clips.load(path)
    assert loaded.sha256 == sha256
    texts = ["a small red circle on a blue background", "a heart"]
    assert torch.equal(loaded.tokens(texts), model.tokens(texts))
    assert loaded.tokens(texts)[1].tolist()[:4] == [1, loaded.tokens(["a"])[0, 1], 2, 3], "start, a, unknown, end"
    encoder = loaded.text_encoder()
    assert encoder(texts).shape == (2, 16, 16)
    assert torch.equal(encoder([None]), encoder([""]))
    assert torch.equal(encoder(texts), model.text_encoder()(texts))
    score = ClipScore(str(path), len(images))
    score.update(0, images, [shapes.CAPTIONS[label] for label in labels.tolist()])
    others = ClipScore(str(path), len(images))
    others.update(0, images, [shapes.CAPTIONS[label] for label in labels.flip(0).tolist()])
    assert score.compute().value > others.compute().value
    with pytest.raises(ValueError, match="the model takes 16×16"):
        loaded.pixels(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def _pretrain(**changes: Any) -> Any:
    from quest.config.pretraining import PretrainSettings

    return PretrainSettings.model_validate(PRETRAIN | changes)


def test_stage_of_each_family(make_settings: Callable[..., DatasetSettings], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"{caption}\n" for caption in shapes.captions(240, 0)))
    clip, extractor = tmp_path / "clip.safetensors", tmp_path / "extractor.safetensors"
    families = {
        "vq": ({}, {"autoencoder": AUTOENCODER | {"kind": "vq", "codes": 16, "steps": 2}}),
        "class": (
            {"condition": {"classes": 24}, "sampler": {"guidance_scale": 2.0}},
            {"autoencoder": AUTOENCODER | {"kind": "vq", "codes": 16, "steps": 2}},
        ),
        "text": (
            {
                "condition": {"prompts": prompts},
                "sampler": {"kind": "plms", "guidance_scale": 2.0},
                "evaluation": {"clip": {"model": str(clip), "prompts": prompts}},
            },
            {"autoencoder": AUTOENCODER | {"kind": "kl", "steps": 2}, "clip": CLIP},
        ),
    }
    for name, (protocol, trained) in families.items():
        model = tmp_path / f"{name}.safetensors"
        settings = make_settings(**TINY | protocol, model=model, extractor=extractor, pretrain=PRETRAIN | trained)
        if name == "text":
            with pytest.raises(ValueError, match="a model of prompts is conditioned by a CLIP artifact"):
                pretrain.run("tiny", settings, model, extractor, CPU, allow_cpu=True, clip=None)
            pretrain_clip.run("tiny", settings, clip, CPU, allow_cpu=True)
        given = clip if name == "text" else None
        pretrain.run("tiny", settings, model, extractor, CPU, allow_cpu=True, clip=given)
        loaded = denoisers.load(model)
        assert loaded.shape == (3, 8, 8)
        assert loaded.first_stage is not None
        conditioner = {"vq": type(None), "class": ClassEmbedder, "text": TextEncoder}[name]
        assert type(loaded.conditioner) is conditioner
        manifest = load_tensors(model, "model").manifest
        assert manifest.notes["account"]["parameters"] == sum(p.numel() for p in loaded.network.parameters())
        assert manifest.notes["first_stage_psnr"] > 0
        assert set(manifest.inputs) == ({"clip"} if name == "text" else set())
        images = draw(loaded, loaded.network, settings, 0, range(3), CPU)
        assert images.shape == (3, 3, 16, 16)
        again = tmp_path / "again.safetensors"
        pretrain.run("tiny", settings, again, tmp_path / "e", CPU, allow_cpu=True, clip=given)
        assert again.read_bytes() == model.read_bytes(), "the same for a seed"
        table = embedded.run(settings, 240, 0, tmp_path / "grid.png", CPU)
        assert embedded.run(settings, 240, 1, None, CPU) != table, "other noise"
        measures = {name: float(value) for name, value in map(str.split, table.splitlines())}
        assert {"fid", "fid_of_real", "ratio", "extractor_right", "reconstruction_psnr"} <= set(measures)
        drawn, labels = shapes.draw("quality/other", range(240), 16, CPU)
        through = to_uint8(loaded.first_stage.decode(loaded.first_stage.encode(drawn.float() / 127.5 - 1)))
        found = load_extractor(extractor, CPU)(through).logits.argmax(1)
        assert measures["reconstruction_right"] == pytest.approx((found == labels).float().mean().item(), abs=1e-4)
        assert ("class_right" in measures, "clip" in measures) == (name == "class", name == "text")
        assert (tmp_path / "grid.png").read_bytes()[:4] == b"\x89PNG"


TRANSFORMER: dict[str, Any] = {
    "transformer": {"layers": 2, "heads": 2, "head_dim": 8},
    "steps": 2,
    "batch_size": 8,
    "images": 300,
}


def test_a_transformer_on_the_first_stage_of_another_model(
    make_settings: Callable[..., DatasetSettings], tmp_path: Path
) -> None:
    protocol = TINY | {"condition": {"classes": 24}, "sampler": {"guidance_scale": 2.0}}
    shared, model, extractor = (tmp_path / f"{name}.safetensors" for name in ("shared", "model", "extractor"))
    vq = AUTOENCODER | {"kind": "vq", "codes": 16, "steps": 2}
    whole = make_settings(**protocol, model=shared, pretrain=PRETRAIN | {"autoencoder": vq})
    pretrain.run("whole", whole, shared, extractor, CPU, allow_cpu=True, clip=None)
    on_it = {"first_stage": str(shared), **TRANSFORMER}
    settings = make_settings(**protocol, model=model, extractor=extractor, pretrain=on_it)
    pretrain_denoiser.run("tiny", settings, model, shared, CPU, allow_cpu=True)

    loaded, source = denoisers.load(model), denoisers.load(shared)
    assert type(loaded.network) is DiTTransformer2DModel
    assert type(loaded.conditioner) is ClassLabels
    assert loaded.first_stage is not None
    assert source.first_stage is not None
    latents = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded.first_stage.decode(latents), source.first_stage.decode(latents))
    manifest = load_tensors(model, "model").manifest
    assert manifest.inputs == {"first_stage": source.sha256}
    assert len(manifest.notes["losses"]) == 2
    images = draw(loaded, loaded.network, settings, 0, range(3), CPU)
    assert images.shape == (3, 3, 16, 16)
    again = tmp_path / "again.safetensors"
    pretrain_denoiser.run("tiny", settings, again, shared, CPU, allow_cpu=True)
    assert again.read_bytes() == model.read_bytes(), "the same for a seed"

    denoisers.save(tmp_path / "pixels", Denoiser(source.network, source.scheduler), training.manifest(_pretrain()))
    with pytest.raises(ValueError, match="is a model of pixels"):
        pretrain_denoiser.run("tiny", settings, model, tmp_path / "pixels", CPU, allow_cpu=True)
    with pytest.raises(ValueError, match="expected `quest pretrain-denoiser`"):
        pretrain.run("tiny", settings, model, extractor, CPU, allow_cpu=True, clip=None)
    with pytest.raises(ValueError, match="expected `quest pretrain`"):
        pretrain_denoiser.run("tiny", whole, model, shared, CPU, allow_cpu=True)
    no_classes = settings.model_copy(update={"condition": None})
    with pytest.raises(ValueError, match="told classes; expected condition"):
        pretrain_denoiser.run("tiny", no_classes, model, shared, CPU, allow_cpu=True)


def test_a_transformer_begins_as_the_identity_and_learns() -> None:
    """Its blocks, that is: adaLN-Zero. What it learns is of the class, too: two classes with means far apart."""
    torch.manual_seed(0)
    settings = _pretrain(unet=None, **TRANSFORMER | {"steps": 150, "batch_size": 32, "lr": 3e-3, "ema": 0.9})
    network = denoiser.build_transformer(settings.transformer, 3, 8, 2).train()
    x, t, classes = torch.randn(2, 3, 8, 8), torch.tensor([1, 900]), torch.tensor([0, 2])
    tokens = torch.randn(2, 16, 16)
    assert torch.equal(network.transformer_blocks[0](tokens, timestep=t, class_labels=classes), tokens)
    assert network(x, t, classes).sample.abs().max() == 0
    with pytest.raises(ValueError, match=r"patch_size: 2 does not divide 7"):
        denoiser.build_transformer(settings.transformer, 3, 7, 2)

    labels = torch.arange(64) % 2
    latents = 0.1 * torch.randn(64, 1, 4, 4) + (2.0 * labels - 1).view(-1, 1, 1, 1)
    conditions = denoiser.Conditions(labels, 2, lambda n: n, None, ClassLabels(2))
    trained = denoiser.train_denoiser(latents, settings, CPU, conditions)
    assert trained.losses[-1] < 0.7 * trained.losses[0]
    noise, middle = torch.randn(64, 1, 4, 4), torch.full((64,), 500)
    with torch.no_grad():
        low, high = (trained.network(noise, middle, torch.full((64,), told)).sample.mean() for told in (0, 1))
    assert low > high + 0.1, "of the same picture, what is brighter than its class is noise"


def test_prompts_without_a_clip_model(make_settings: Callable[..., DatasetSettings], tmp_path: Path) -> None:
    settings = make_settings(**TINY, pretrain=PRETRAIN)
    with pytest.raises(ValueError, match=r"pretrain\.clip: missing"):
        pretrain_clip.run("tiny", settings, tmp_path / "clip", CPU, allow_cpu=True)
    assert not (tmp_path / "clip").exists()
