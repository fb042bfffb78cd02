"""How many images are drawn and what they are measured by."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from quest.config.values import Positive, Settings, Several

Backend = Literal["fake", "integer"]
FAKE: Backend = "fake"


class ClipSettings(Settings):
    """CLIP score of text-conditional images."""

    model: str = Field(
        default="openai/clip-vit-base-patch16",
        description="CLIP model: a hub id, a folder, or an artifact (.safetensors) of an embedded dataset",
    )
    prompts: Path = Field(description="text file: line i is the prompt of image i")


class EvaluationSettings(Settings):
    """How many images are drawn, and what they are measured by (the defaults are ADM's evaluator's)."""

    images: Several = 50_000
    shards: Positive = Field(default=1, description="independent sampling jobs of one cell")
    batch_size: Positive = 100
    backend: Backend = Field(
        default=FAKE,
        description="what multiplies in a quantized network: fake, floating-point numbers that lie on the grids, or "
        "integer, the packed codes by integer kernels",
    )
    neighbours: Positive = Field(default=3, description="k of precision and recall")
    inception_split_size: Positive = Field(
        default=5_000, description="images of one group of the inception score, which is averaged over groups"
    )
    kid_block_size: Positive = Field(default=1_000, description="images of one block of KID, averaged over blocks")
    clip: ClipSettings | None = Field(default=None, description="set for text-conditional models only")
