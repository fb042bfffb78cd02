"""CLIP's text encoder and tokenizer, of four words and random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORDS = ["a</w>", "b</w>", "<|startoftext|>", "<|endoftext|>"]


def tiny_clip(folder: Path) -> dict[str, Any]:
    """``text_encoder`` and ``tokenizer`` of a pipeline. folder: for the files that the tokenizer is read from."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokens: dict[str, Any] = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 3}
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16}
    layers: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPTextConfig(vocab_size=len(WORDS), max_position_embeddings=6, **sizes, **layers, **tokens)
    return {
        "text_encoder": CLIPTextModel(config),
        "tokenizer": CLIPTokenizer.from_pretrained(folder, model_max_length=6),
    }
