"""What a conditional model makes of its condition: a context (N, tokens, channels) for cross-attention, or the classes
(N,) of a network that embeds them itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

TOKENIZER = "tokenizer"
"""Name of the tensor (uint8) that holds a text encoder's tokenizer, JSON as the library `tokenizers` writes it."""


class ClassLabels(nn.Module):
    """Classes by their numbers, for a network that embeds them itself (DiT).

    classes: how many there are beside no class; they count from 0. null: the number behind them, for no class.
    """

    kind = "class"
    null: Tensor

    def __init__(self, classes: int):
        super().__init__()
        self.classes = classes
        # No weight, so it has a value even where a model is built without any, on the meta device.
        self.register_buffer("null", torch.tensor(classes, device="cpu"), persistent=False)

    def forward(self, conditions: Sequence[int | None]) -> Tensor:
        """Classes, None for no class, to (n,) int64. Raises ValueError for a class that the model has not."""
        for label in conditions:
            if isinstance(label, str):
                raise ValueError("condition: found prompts in the protocol, but the model takes classes")
            if label is not None and not 0 <= label < self.classes:
                raise ValueError(f"condition: class {label}; the model has classes 0 to {self.classes - 1}")
        labels = [self.classes if label is None else label for label in conditions]
        return torch.tensor(labels, dtype=torch.long, device=self.null.device)

    def describe(self) -> dict[str, Any]:
        """What `build` makes the module from, as JSON."""
        return {"kind": self.kind, "classes": self.classes}


class ClassEmbedder(ClassLabels):
    """One learned vector for each class, the last of which stands for no class (latent diffusion's cin256 models)."""

    def __init__(self, classes: int, channels: int):
        """classes: with the one that stands for none."""
        super().__init__(classes - 1)
        self.embedding = nn.Embedding(classes, channels)

    def forward(self, conditions: Sequence[int | None]) -> Tensor:
        """Classes, None for no class, to (n, 1, channels). Raises ValueError for a class that the model has not."""
        return self.embedding(super().forward(conditions)).unsqueeze(1)

    def describe(self) -> dict[str, Any]:
        """What `build` makes the module from, as JSON."""
        return {"kind": self.kind, "classes": self.embedding.num_embeddings, "channels": self.embedding.embedding_dim}


class TextEncoder(nn.Module):
    """A CLIP text model with its tokenizer; the empty text stands for none (Stable Diffusion).

    model: transformers' CLIPTextModel. tokenizer: of the library `tokenizers`, padding and truncating to the model's
    length.
    """

    kind = "text"

    def __init__(self, model: Any, tokenizer: Any):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer

    def forward(self, conditions: Sequence[str | None]) -> Tensor:
        """Texts, None for no text, to (n, tokens, channels). Raises ValueError for classes."""
        if not all(text is None or isinstance(text, str) for text in conditions):
            raise ValueError("condition: found classes in the protocol, but the model takes prompts")
        encoded = self.tokenizer.encode_batch([text or "" for text in conditions])
        ids = torch.tensor([each.ids for each in encoded], device=self.model.device)
        return self.model(ids).last_hidden_state

    def cut(self, texts: Sequence[str]) -> int:
        """How many of ``texts`` are longer than the model reads: their ends are not seen."""
        return sum(bool(each.overflowing) for each in self.tokenizer.encode_batch(list(texts)))

    def describe(self) -> dict[str, Any]:
        """What `build` makes the module from, as JSON; the tokenizer is stored as a tensor."""
        return {"kind": self.kind, "config": self.model.config.to_diff_dict()}


Conditioner = ClassLabels | TextEncoder


def build(description: dict[str, Any], tensors: dict[str, Tensor]) -> Conditioner:
    """The conditioner that `tensors_of` took apart. Raises RuntimeError when the tensors do not fit."""
    tensors = dict(tensors)
    if description["kind"] == ClassLabels.kind:
        sizes = {key: value for key, value in description.items() if key != "kind"}
        conditioner: Conditioner = ClassEmbedder(**sizes) if "channels" in sizes else ClassLabels(**sizes)
    else:
        from tokenizers import Tokenizer
        from transformers import CLIPTextConfig, CLIPTextModel

        tokenizer = Tokenizer.from_str(tensors.pop(TOKENIZER).numpy().tobytes().decode())
        conditioner = TextEncoder(CLIPTextModel(CLIPTextConfig(**description["config"])), tokenizer)
    conditioner.load_state_dict(tensors)
    return conditioner


def tensors_of(conditioner: Conditioner) -> dict[str, Tensor]:
    """Weights of a conditioner, and its tokenizer where it has one."""
    tensors = dict(conditioner.state_dict())
    if isinstance(conditioner, TextEncoder):
        tensors[TOKENIZER] = torch.frombuffer(bytearray(conditioner.tokenizer.to_str().encode()), dtype=torch.uint8)
    return tensors
