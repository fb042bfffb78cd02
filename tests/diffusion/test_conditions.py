"""Prompts: what a line is, and that those which are cut are counted."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from quest.config.dataset import DatasetSettings
from quest.diffusion import conditioners, sampling
from quest.diffusion.conditioners import ClassEmbedder, ClassLabels, TextEncoder
from quest.diffusion.conditions import read_prompts
from quest.diffusion.denoiser import Denoiser
from quest.diffusion.guidance import Guidance

LENGTH = 6


@pytest.fixture
def encoder() -> TextEncoder:
    """Of three words and ``LENGTH`` tokens, two of which are the marks around a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPTextConfig, CLIPTextModel

    words = {"a": 0, "b": 1, "c": 2, "<": 3, ">": 4}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=">"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="< $A >", special_tokens=[("<", 3), (">", 4)])
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH, pad_id=4, pad_token=">")
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=5,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=3,
        eos_token_id=4,
        pad_token_id=4,
    )
    return TextEncoder(CLIPTextModel(config).eval(), tokenizer)


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        (b"a cat\na dog\n", ["a cat", "a dog"]),
        (b"a cat\na dog", ["a cat", "a dog"]),
        (b"a cat\r\na dog\r\n", ["a cat", "a dog"]),
        (b"\xef\xbb\xbfa cat\n", ["a cat"]),
        ("a\u2028cat\na\x0bdog\na\x85bird\x1c\n".encode(), ["a\u2028cat", "a\x0bdog", "a\x85bird\x1c"]),
    ],
)
def test_only_a_line_feed_ends_a_line(tmp_path: Path, content: bytes, prompts: list[str]) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    assert read_prompts(file) == prompts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a cat\n\na dog\n", "line 2 is empty"),
        (b"a cat\n\n", "line 2 is empty"),
        (b"", "no line"),
        (b"a c\xe4t\n", "byte 3 is not UTF-8"),
        (None, "No such file"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"condition\.prompts: .*{message}"):
        read_prompts(file)


def test_prompts_that_are_cut_are_counted(encoder: TextEncoder) -> None:
    longest = "a b c a"
    assert len(longest.split()) == LENGTH - 2
    assert encoder.cut(["", "a", longest]) == 0
    assert encoder.cut([longest, longest + " b", longest + " c"]) == 2
    with torch.no_grad():
        fits, first, second = encoder([longest, longest + " b", longest + " c"])
    assert torch.equal(fits, first)
    assert torch.equal(first, second), "which is why it is said"


@pytest.mark.parametrize(("prompts", "said"), [("a b c a b\na\n", 1), ("a\nb c\n", 0)])
def test_a_draw_says_how_many_are_cut(
    encoder: TextEncoder,
    make_settings: Callable[..., DatasetSettings],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    prompts: str,
    said: int,
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text(prompts)
    network: Any = UNet2DConditionModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=16,
    ).eval()
    model = Denoiser(network, DDIMScheduler(clip_sample=False), conditioner=encoder)
    settings = make_settings(condition={"prompts": str(file)}, evaluation={"batch_size": 1})
    with caplog.at_level(logging.WARNING, logger="quest"):
        sampling.draw(model, network, settings, 0, range(3), torch.device("cpu"))
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [f"{file}: 1 of 2 prompts are longer than the model reads, and cut"] * said


def test_conditions_of_the_other_kind(encoder: TextEncoder) -> None:
    with pytest.raises(ValueError, match="found classes in the protocol, but the model takes prompts"):
        encoder([1, None])
    for classes in (ClassEmbedder(4, 2), ClassLabels(3)):
        with pytest.raises(ValueError, match="found prompts in the protocol, but the model takes classes"):
            classes(["a cat"])  # type: ignore[list-item]
        with pytest.raises(ValueError, match="class 3; the model has classes 0 to 2"):
            classes([3])


def test_classes_by_their_numbers() -> None:
    """For a network that embeds them: none is the number behind the last, as guidance needs it."""
    labels = ClassLabels(3)
    assert labels([2, None, 0]).tolist() == [2, 3, 0]
    assert labels([]).dtype == torch.long
    guidance = Guidance(labels([2, 0]), labels([None]), scale=2.0)
    assert [half.tolist() for half in guidance.halves()] == [[3, 3], [2, 0]]
    again = conditioners.build(labels.describe(), conditioners.tensors_of(labels))
    assert type(again) is ClassLabels
    assert again([None]).tolist() == [3]
