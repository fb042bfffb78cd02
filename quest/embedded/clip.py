"""A CLIP model (Radford et al. 2021) as one artifact: transformers' network with a tokenizer of its own.

The small one of the embedded text model; published ones are loaded by transformers itself (`quest.metrics.clip`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from quest.artifacts import ArtifactError, Manifest, load_tensors, save_tensors
from quest.diffusion.conditioners import TOKENIZER, TextEncoder


@dataclass
class Clip:
    """model: transformers' CLIPModel. tokenizer: of the library `tokenizers`, padding to the model's length."""

    model: Any
    tokenizer: Any
    sha256: str = ""

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Token ids (n, length) int64, on the model's device."""
        return torch.tensor([each.ids for each in self.tokenizer.encode_batch(list(texts))], device=self.model.device)

    def pixels(self, images: Tensor) -> Tensor:
        """Images (n, 3, H, W) uint8 as the model takes them. Raises ValueError for another size than the model's."""
        size = self.model.config.vision_config.image_size
        if images.shape[-2:] != (size, size):
            raise ValueError(f"CLIP: found images {tuple(images.shape)}, the model takes {size}×{size}")
        return images.to(self.model.device).float() / 127.5 - 1

    def text_encoder(self) -> TextEncoder:
        """A copy of its text model, to condition a denoiser."""
        return TextEncoder(copy.deepcopy(self.model.text_model), self.tokenizer).eval().requires_grad_(False)


def tokenizer(words: Sequence[str], length: int) -> Any:
    """A tokenizer of whole words, padding and truncating to ``length``; ids 0 to 3: padding, start, unknown, end."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    special = ("<pad>", "<start>", "<unknown>", "<end>")
    vocabulary = {word: index for index, word in enumerate((*special, *words))}
    made: Any = Tokenizer(WordLevel(vocabulary, unk_token="<unknown>"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(
        single="<start> $A <end>", special_tokens=[(name, vocabulary[name]) for name in ("<start>", "<end>")]
    )
    made.enable_padding(pad_id=0, pad_token="<pad>", length=length)
    made.enable_truncation(length)
    return made


def build(text: dict[str, Any], vision: dict[str, Any], projection: int, tokenizer: Any) -> Clip:
    """An untrained model on the vocabulary of ``tokenizer``; text and vision: keys of transformers' configs."""
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3}  # 2 as the end has a meaning of its own there
    vocabulary = {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": tokenizer.padding["length"]}
    text = text | special | vocabulary | {"projection_dim": projection}
    vision = vision | {"projection_dim": projection}
    config: Any = CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)
    return Clip(CLIPModel(config), tokenizer)


def save(path: Path, clip: Clip, manifest: Manifest) -> Manifest:
    """Write an artifact of kind "clip", weights in half precision."""
    tensors = {f"model.{name}": tensor.half() for name, tensor in clip.model.state_dict().items()}
    tensors[TOKENIZER] = torch.frombuffer(bytearray(clip.tokenizer.to_str().encode()), dtype=torch.uint8)
    notes = manifest.notes | {"config": clip.model.config.to_diff_dict()}
    return save_tensors(path, tensors, Manifest("clip", manifest.settings, manifest.seeds, manifest.inputs, notes))


def load(path: Path, device: torch.device | str = "cpu") -> Clip:
    """Read what `save` wrote as float32 in eval mode. Raises ArtifactError when it does not fit."""
    from tokenizers import Tokenizer

    artifact = load_tensors(path, "clip")
    tensors = dict(artifact.tensors)
    tokenizer = Tokenizer.from_str(tensors.pop(TOKENIZER).numpy().tobytes().decode())
    config: Any = CLIPConfig(**artifact.manifest.notes["config"])
    model = CLIPModel(config)
    try:
        model.load_state_dict({name.removeprefix("model."): tensor.float() for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise ArtifactError(f"{path}: weights do not fit their own architecture: {error}") from error
    return Clip(model.eval().requires_grad_(False).to(device), tokenizer, artifact.manifest.sha256)  # pyright: ignore[reportArgumentType]
