"""CLIP score with a stand-in for the model, as torchmetrics takes one, and with a tiny CLIP of transformers."""

from __future__ import annotations

import hashlib
import json
import string
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torchmetrics.multimodal.clip_score import CLIPScore

from quest.metrics import clip
from quest.metrics.clip import ClipScore, read_prompts


class Colours(nn.Module):
    """Embeds an image as its mean colour and a prompt as the colour that it names."""

    config = SimpleNamespace()

    def get_image_features(self, pixels: Tensor) -> Tensor:
        return pixels.float().mean((2, 3))

    def get_text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        return torch.eye(3)[ids]


class Reader:
    def __call__(self, text: list[str] | None = None, images: list[Tensor] | None = None, **_: Any) -> dict[str, Any]:
        if images is not None:
            return {"pixel_values": torch.stack(images)}
        assert text is not None
        return {
            "input_ids": torch.tensor([("red", "green", "blue").index(t) for t in text]),
            "attention_mask": torch.ones(1),
        }


def loader() -> tuple[Any, Any]:
    return Colours(), Reader()


def coloured(*channels: int) -> Tensor:
    images = torch.zeros(len(channels), 3, 8, 8, dtype=torch.uint8)
    for image, channel in zip(images, channels, strict=True):
        image[channel] = 200
    return images


def test_the_score_is_the_mean_cosine_times_100():
    score = ClipScore(loader, 4)
    score.update(0, coloured(0, 1, 2, 0), ["red", "green", "blue", "blue"])
    value, error = score.compute()
    assert value == pytest.approx(75)
    assert error is None, "four images are too few"


def test_the_error_is_that_of_the_mean_of_as_many_pairs():
    errors = []
    for seed in range(20):
        channels = torch.randint(0, 3, (200,), generator=torch.Generator().manual_seed(seed)).tolist()
        score = ClipScore(loader, 200)
        score.update(0, coloured(*channels), ["red"] * 200)
        errors.append(score.compute().error or 0)
    # A third of the cosines are 1, the others 0.
    assert sum(errors) / 20 == pytest.approx(100 * (2 / 9 / 200) ** 0.5, rel=0.2)


def test_shards_and_their_order_do_not_matter():
    channels = torch.randint(0, 3, (50,), generator=torch.Generator().manual_seed(0)).tolist()
    prompts = ["red"] * 50
    whole = ClipScore(loader, 50)
    whole.update(0, coloured(*channels), prompts)
    parts = ClipScore(loader, 50)
    for first in (30, 0, 10):
        stop = {30: 50, 0: 10, 10: 30}[first]
        parts.update(first, coloured(*channels[first:stop]), prompts[first:stop])
    assert parts.compute() == pytest.approx(whole.compute(), rel=1e-9)
    assert whole.compute().value == pytest.approx(100 * channels.count(0) / 50)


def test_wrong_images_and_gaps_are_refused():
    score = ClipScore(loader, 4)
    with pytest.raises(ValueError, match=r"found images \(1, 3, 8, 8\) torch.float32 and 1 prompts"):
        score.update(0, coloured(0).float(), ["red"])
    with pytest.raises(ValueError, match="and 2 prompts, expected"):
        score.update(0, coloured(0), ["red", "red"])
    score.update(0, coloured(0), ["red"])
    with pytest.raises(ValueError, match="images 0 to 0 do not fit or came before"):
        score.update(0, coloured(0), ["red"])
    with pytest.raises(ValueError, match="found 1 of 4 images"):
        score.compute()


def test_prompts_are_read_with_their_hash(tmp_path: Path):
    file = tmp_path / "prompts.txt"
    file.write_text("a red square\na blue circle\n")
    assert read_prompts(file, 2) == (["a red square", "a blue circle"], hashlib.sha256(file.read_bytes()).hexdigest())
    with pytest.raises(ValueError, match="found 2 prompts in 2 lines, expected one for each of 3 images"):
        read_prompts(file, 3)
    file.write_text("a\n\n")
    with pytest.raises(ValueError, match="found 1 prompts in 2 lines"):
        read_prompts(file, 2)
    with pytest.raises(ValueError, match=r"evaluation\.clip\.prompts: .*none\.txt: No such file"):
        read_prompts(tmp_path / "none.txt", 2)


def test_features_of_newer_transformers_are_unwrapped():
    tensor = torch.ones(2, 3)
    model = SimpleNamespace(
        config=None,
        get_image_features=lambda *_: SimpleNamespace(pooler_output=tensor),
        get_text_features=lambda *_: tensor,
    )
    wrapped = clip._Tensors(model)
    assert wrapped.get_image_features(tensor) is tensor
    assert wrapped.get_text_features(tensor) is tensor


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP with random weights as transformers stores one: model, tokenizer of single letters, processor."""
    folder = tmp_path_factory.mktemp("clip")
    letters = string.ascii_lowercase
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1}
    config = transformers.CLIPConfig(
        text_config=size | ends | {"vocab_size": len(tokens), "max_position_embeddings": 16},
        vision_config=size | {"image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.CLIPModel(config).save_pretrained(folder)
    crop = {"height": 32, "width": 32}
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=crop)
    transformers.CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder


PROMPTS = ["a red cat", "dog", "fish in sea", "the moon", "a", "trees", "red", "blue"]


@pytest.mark.parametrize("offset", [0, 8])
def test_a_model_of_transformers_scores_as_torchmetrics_and_by_hand(clip_folder: Path, offset: int):
    images = torch.randint(0, 256, (16, 3, 48, 40), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    images, prompts = images[offset : offset + 8], PROMPTS
    model = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    processor = transformers.CLIPProcessor.from_pretrained(clip_folder)
    with torch.no_grad():
        inputs = processor(text=prompts, images=list(images), return_tensors="pt", padding=True)  # pyright: ignore[reportCallIssue]
        output = model(**inputs)
    cosines = torch.cosine_similarity(output.image_embeds, output.text_embeds)
    assert cosines.std() > 0.01

    signed = [images, images[cosines > 0]], [prompts, [p for p, c in zip(prompts, cosines, strict=True) if c > 0]]
    for chosen, texts in zip(*signed, strict=True):
        score = ClipScore(str(clip_folder), len(chosen))
        for first in range(0, len(chosen), 3):
            score.update(first, chosen[first : first + 3], texts[first : first + 3])
        reference = CLIPScore(model_name_or_path=lambda: (clip._Tensors(model), processor))  # pyright: ignore[reportArgumentType]
        reference.update(chosen, texts)
        by_hand = 100 * (cosines if len(chosen) == len(images) else cosines[cosines > 0]).mean().item()
        assert score.compute().value == pytest.approx(max(0.0, by_hand), abs=1e-4)
        assert score.compute().value == pytest.approx(reference.compute().item(), abs=1e-4)


def test_a_model_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"evaluation\.clip\.model: '.*none' was not found"):
        ClipScore(str(tmp_path / "none"), 4)
