"""What does not fit together, or is of a kind unknown here, is refused in one sentence before anything is computed."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.vq_model import VQModel
from safetensors.torch import load_file, save_file

from quest.artifacts import ArtifactError
from quest.config.dataset import DatasetSettings
from quest.config.values import ConfigError
from quest.sources import pipelines
from quest.stages import import_model

LATENT = {"image_size": 16, "image_channels": 3}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def refusal(make_settings: Callable[..., DatasetSettings], tmp_path: Path) -> Callable[..., str]:
    """What the import of a source says, which leaves nothing behind."""

    def say(source: Path, **protocol: Any) -> str:
        output = tmp_path / "model.safetensors"
        with pytest.raises(ArtifactError) as caught:
            import_model.run("d", make_settings(source=str(source), **protocol), None, output)
        assert not output.exists()
        message = str(caught.value)
        assert "\n" not in message
        return message

    return say


UNCONDITIONAL: list[tuple[dict[str, Any], str]] = [
    ({"time_embedding_type": "fourier"}, "time_embedding_type is 'fourier'"),
    ({"num_class_embeds": 10}, "num_class_embeds is 10, a class embedding"),
    ({"class_embed_type": "identity"}, "class_embed_type is 'identity', a class embedding"),
    ({"sample_size": (8, 16)}, "sample_size is [8, 16]; expected the one side of a square"),
    ({"sample_size": None}, "sample_size is None; expected the one side of a square"),
    ({"sample_size": 7}, "sample_size is 7, which 2 levels of block_out_channels cannot halve 1 times"),
    ({"in_channels": 2}, "in_channels 2 and gives out_channels 1, more than is denoised"),
    ({"out_channels": 2}, "in_channels 1 and gives out_channels 2, a variance as well"),
    ({"mid_block_type": "MidX"}, "mid_block_type is 'MidX'; expected 'UNetMidBlock2D', or none"),
]


@pytest.mark.parametrize(("config", "message"), UNCONDITIONAL)
def test_unconditional_networks(
    publish: Callable[..., Path],
    refusal: Callable[..., str],
    make_unet: Callable[..., Any],
    config: dict[str, Any],
    message: str,
) -> None:
    assert message in refusal(publish(make_unet(**config)))


CONDITIONAL: list[tuple[dict[str, Any], str]] = [
    (
        {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 40,
        },
        "addition_embed_type is 'text_time'",
    ),
    ({"time_cond_proj_dim": 8}, "time_cond_proj_dim is 8, the guidance scale as an input"),
    ({"attention_type": "gated"}, "attention_type is 'gated', of GLIGEN's boxes"),
    ({"encoder_hid_dim_type": "text_proj", "encoder_hid_dim": 16}, "encoder_hid_dim_type is 'text_proj'"),
    ({"in_channels": 9}, "in_channels 9 and gives out_channels 4, more than is denoised"),
    ({"cross_attention_dim": 24}, "a context of cross_attention_dim 24, but the encoder gives 16"),
]


@pytest.mark.parametrize(("config", "message"), CONDITIONAL)
def test_conditional_networks(
    publish: Callable[..., Path],
    refusal: Callable[..., str],
    make_conditional: Callable[..., Any],
    make_autoencoder: Callable[..., Any],
    config: dict[str, Any],
    message: str,
) -> None:
    assert message in refusal(publish(make_conditional(**config), first_stage=make_autoencoder()), **LATENT)


@pytest.mark.parametrize("divisor", [0, 3, 32])
def test_heads_that_do_not_divide(
    publish: Callable[..., Path], refusal: Callable[..., str], edit: Callable[..., None], divisor: int
) -> None:
    folder = publish()
    edit(folder / "unet" / "config.json", attention_head_dim=divisor)
    assert f"attention_head_dim is {divisor}, which does not divide the 16 channels of level 1" in refusal(folder)


@pytest.mark.parametrize("value", [5, "x", None])
def test_values_of_the_wrong_kind_are_no_traceback(
    publish: Callable[..., Path], refusal: Callable[..., str], edit: Callable[..., None], value: Any
) -> None:
    folder = publish()
    edit(folder / "unet" / "config.json", block_out_channels=value)
    assert "unet/config.json: " in refusal(folder)


def test_equal_sides_are_one(publish: Callable[..., Path], make_unet: Callable[..., Any]) -> None:
    assert pipelines.open_source(publish(make_unet(sample_size=(8, 8)))).shape == (1, 8, 8)


def test_latents_of_the_first_stage(
    publish: Callable[..., Path],
    refusal: Callable[..., str],
    make_unet: Callable[..., Any],
    make_autoencoder: Callable[..., Any],
) -> None:
    unet = make_unet(in_channels=4, out_channels=4)
    said = refusal(publish(unet, first_stage=make_autoencoder(latent_channels=8)), **LATENT)
    assert said.endswith("the U-Net has 4 channels, but the latents of the first stage have 8")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"scaling_factor": 0.0}, "the scale factor 0.0; expected a finite number other than 0"),
        ({"scaling_factor": float("inf")}, "the scale factor inf; expected a finite number other than 0"),
        ({"scaling_factor": None}, "the scale factor None; expected a finite number other than 0"),
        ({"shift_factor": float("nan")}, "the shift_factor nan"),
        ({"latents_mean": [0.0] * 4}, "one of latents_mean and latents_std; expected both"),
        ({"latents_mean": [0.0] * 3, "latents_std": [1.0] * 3}, "for 4 channels"),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0, 1.0, 0.0, 1.0]}, "no std 0"),
    ],
)
def test_normalization_of_the_latents(
    publish: Callable[..., Path],
    refusal: Callable[..., str],
    make_unet: Callable[..., Any],
    make_autoencoder: Callable[..., Any],
    edit: Callable[..., None],
    config: dict[str, Any],
    message: str,
) -> None:
    folder = publish(make_unet(in_channels=4, out_channels=4), first_stage=make_autoencoder())
    edit(folder / "vae" / "config.json", **config)
    assert message in refusal(folder, **LATENT)


@pytest.mark.parametrize(("part", "name"), [("unet", "conv_in.bias"), ("vae", "decoder.conv_out.bias")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(
    publish: Callable[..., Path],
    refusal: Callable[..., str],
    make_unet: Callable[..., Any],
    make_autoencoder: Callable[..., Any],
    part: str,
    name: str,
    value: float,
) -> None:
    folder = publish(make_unet(in_channels=4, out_channels=4), first_stage=make_autoencoder())
    tensors = load_file(folder / part / WEIGHTS)
    tensors[name][0] = value
    save_file(tensors, folder / part / WEIGHTS, {"format": "pt"})
    named = {"unet": "U-Net", "vae": "first stage"}[part]
    assert f"{named}: {name} holds numbers that are not finite" in refusal(folder, **LATENT)


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ({"image_size": 16}, "draws images of 8×8, but image_size is 16"),
        ({"image_channels": 3}, "has images of 1 channels, but image_channels is 3"),
        ({"condition": {"classes": 3}}, "condition: found classes in the protocol, but the model takes none"),
        ({"sampler": {"guidance_scale": 3.0}}, "sampler.guidance_scale is 3.0, but the model takes no condition"),
        (
            {"sampler": {"steps": 400}, "calibration": {"steps": 4}},
            "sampler.steps is 400, which does not divide the 1000 timesteps of the model; take 250 or 500",
        ),
    ],
)
def test_protocol_of_a_pixel_model(
    publish: Callable[..., Path], refusal: Callable[..., str], protocol: dict[str, Any], message: str
) -> None:
    assert message in refusal(publish(), **protocol)


def test_protocol_of_a_text_model(
    publish: Callable[..., Path],
    refusal: Callable[..., str],
    make_conditional: Callable[..., Any],
    make_autoencoder: Callable[..., Any],
) -> None:
    folder = publish(make_conditional(), first_stage=make_autoencoder())
    assert "found classes in the protocol, but the model takes prompts" in refusal(
        folder, condition={"classes": 3}, **LATENT
    )
    assert "draws images of 16×16, but image_size is 8" in refusal(folder, image_channels=3)


def test_a_stage_that_is_given_no_sampler_does_not_judge_it(publish: Callable[..., Path], tmp_path: Path) -> None:
    given = {"title": "t", "model": "m", "extractor": "e", "image_size": 8, "image_channels": 1}
    settings = DatasetSettings.model_validate(given | {"source": str(publish())})
    import_model.run("d", settings, None, tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").exists()


def test_plms_of_one_step(make_settings: Callable[..., DatasetSettings]) -> None:
    with pytest.raises(ConfigError, match="kind is plms and steps is 1; PLMS takes at least 2"):
        make_settings(sampler={"kind": "plms", "steps": 1}, calibration={"steps": 1})


def test_parts_that_quest_has_not(publish: Callable[..., Path], refusal: Callable[..., str]) -> None:
    folder = publish()
    index = json.loads((folder / "model_index.json").read_text())
    for part, message in (
        (
            {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]},
            "text_encoder_2 is SDXL's second encoder",
        ),
        (
            {"text_encoder": ["transformers", "T5EncoderModel"]},
            "text_encoder is 'T5EncoderModel'; known is CLIPTextModel",
        ),
    ):
        (folder / "model_index.json").write_text(json.dumps(index | part))
        assert message in refusal(folder)


def test_fields_and_parts_that_are_not_known_are_named(
    publish: Callable[..., Path], edit: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    folder = publish()
    edit(folder / "unet" / "config.json", use_magic=True, _private=1)
    edit(folder / "scheduler" / "scheduler_config.json", magic_shift=3.0)
    edit(folder / "model_index.json", magic=["diffusers", "Magic"], image_encoder=[None, None])
    with caplog.at_level(logging.WARNING, logger="quest"):
        pipelines.open_source(folder)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("quest")]
    ends = ["parts that are not known here, and not used: magic"]
    ends += [f"fields that are not known here, and not used: {name}" for name in ("magic_shift", "use_magic")]
    assert len(said) == 3
    assert all(message.endswith(end) for message, end in zip(said, ends, strict=True))


def test_vq_model_that_names_no_scale_has_none(
    publish: Callable[..., Path],
    make_unet: Callable[..., Any],
    make_autoencoder: Callable[..., Any],
    edit: Callable[..., None],
) -> None:
    """diffusers' default for one is the factor of Stable Diffusion's KL model."""
    unet = make_unet(in_channels=4, out_channels=4)
    for kind, expected in ((VQModel, 1.0), (None, 0.18215)):
        stage = make_autoencoder(VQModel, num_vq_embeddings=16) if kind else make_autoencoder()
        folder = publish(unet, first_stage=stage)
        edit(folder / "vae" / "config.json", scaling_factor=...)
        opened = pipelines.open_source(folder).first_stage
        assert opened is not None
        assert opened.scale_factor == expected
        assert torch.is_tensor(next(iter(opened.network.state_dict().values())))
