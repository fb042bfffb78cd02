"""CLIP score of images and their prompts: 100 times the mean cosine of CLIP embeddings (Hessel et al. 2021, w = 1).

torchmetrics' ``CLIPScore``, one for each resampling group, so that the mean has a standard error. The model comes from
transformers and sees images through its own processor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics.multimodal.clip_score import CLIPScore

from quest.diffusion.conditions import prompt_lines
from quest.metrics.resampling import SUBSETS, Estimate, standard_error
from quest.metrics.statistics import GROUPS, Plan

if TYPE_CHECKING:
    from quest.embedded.clip import Clip

Loader = Callable[[], tuple[Any, Any]]  # a CLIP model and its processor, as torchmetrics takes them
_BATCH = 64


class ClipScore:
    """Accumulates the score of ``images`` pairs.

    model: a hub id or folder that transformers knows (the paper's table: openai/clip-vit-base-patch16), the artifact
    (.safetensors) of an embedded dataset, or a loader.
    Raises ValueError when transformers does not find the model.
    """

    def __init__(self, model: str | Loader, images: int, device: torch.device | str = "cpu"):
        plan = Plan(images, images)
        loaded = _load(model) if isinstance(model, str) else model()
        self._places, self._device = plan.places(), device
        self._seen = torch.zeros(images, dtype=torch.bool)
        # One model for all; torchmetrics takes a name or a callable.
        self._groups = [CLIPScore(model_name_or_path=lambda: loaded).to(device) for _ in range(plan.groups)]  # pyright: ignore[reportArgumentType]

    def update(self, first: int, images: Tensor, prompts: list[str]) -> None:
        """Take in images ``first``, ``first`` + 1, …: (n, 3, H, W) uint8 with their n prompts.

        Raises ValueError for another dtype or channel count, unequal numbers, or images that came before.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or len(images) != len(prompts):
            raise ValueError(
                f"CLIP score: found images {tuple(images.shape)} {images.dtype} and {len(prompts)} prompts, "
                "expected (n, 3, H, W) torch.uint8 and n prompts"
            )
        span = slice(first, first + len(images))
        if first + len(images) > len(self._seen) or self._seen[span].any():
            raise ValueError(f"CLIP score: images {first} to {first + len(images) - 1} do not fit or came before")
        groups = self._places[span] % len(self._groups)
        for group, metric in enumerate(self._groups):
            for rows in (groups == group).nonzero()[:, 0].split(_BATCH):
                if len(rows):
                    with torch.inference_mode():
                        metric.update(images[rows].to(self._device), [prompts[row] for row in rows.tolist()])
        self._seen[span] = True

    def compute(self) -> Estimate:
        """Mean of all pairs, 0 where it is negative, and its standard error. Raises ValueError if some are missing."""
        if not self._seen.all():
            raise ValueError(f"CLIP score: found {int(self._seen.sum())} of {len(self._seen)} images")
        # Not metric.compute(), which would cut each group off at 0 and not the mean of all.
        means = torch.stack([metric.score / metric.n_samples for metric in self._groups]).double().cpu()
        counts = torch.bincount(self._places % len(self._groups), minlength=len(self._groups)).double()
        sums = means * counts
        error = None
        if len(sums) == GROUPS:
            error = standard_error([(sums[list(part)].sum() / counts[list(part)].sum()).item() for part in SUBSETS])
        return Estimate(max(0.0, (sums.sum() / counts.sum()).item()), error)


def read_prompts(path: Path, images: int) -> tuple[list[str], str]:
    """The prompts of ``path``, line i for image i, and its sha256. Raises ValueError unless there are ``images``."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"evaluation.clip.prompts: {path}: {error.strerror}") from error
    prompts = prompt_lines(data)
    if len(prompts) != images or not all(prompt.strip() for prompt in prompts):
        raise ValueError(
            f"{path}: found {sum(bool(prompt.strip()) for prompt in prompts)} prompts in {len(prompts)} lines, "
            f"expected one for each of {images} images"
        )
    return prompts, hashlib.sha256(data).hexdigest()


def _load(name: str) -> tuple[Any, Any]:
    if name.endswith(".safetensors"):
        from quest.embedded import clip

        own = clip.load(Path(name))
        return _Tensors(own.model), _Processor(own)
    from transformers import CLIPModel, CLIPProcessor

    try:
        return _Tensors(CLIPModel.from_pretrained(name)).eval(), CLIPProcessor.from_pretrained(name)
    except OSError as error:
        raise ValueError(f"evaluation.clip.model: {name!r} was not found: {error}") from error


class _Tensors(torch.nn.Module):
    """A CLIP model whose features are tensors, as torchmetrics expects; transformers 5 returns output objects."""

    def __init__(self, model: Any):
        super().__init__()
        self.model, self.config = model, model.config

    def get_image_features(self, *inputs: Tensor) -> Tensor:
        """Image embeddings (n, D)."""
        return _pooled(self.model.get_image_features(*inputs))

    def get_text_features(self, *inputs: Tensor) -> Tensor:
        """Text embeddings (n, D)."""
        return _pooled(self.model.get_text_features(*inputs))


def _pooled(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.pooler_output


class _Processor:
    """What prepares images and texts for the CLIP artifact of an embedded dataset, called as transformers' is."""

    def __init__(self, clip: Clip):
        self._clip = clip

    def __call__(
        self, text: list[str] | None = None, images: list[Tensor] | None = None, **_: Any
    ) -> dict[str, Tensor]:
        if images is not None:
            return {"pixel_values": self._clip.pixels(torch.stack(images))}
        tokens = self._clip.tokens(text or [])
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}  # padding comes after the end
