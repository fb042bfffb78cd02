"""What a few tokens carry: some of a block's output are overwritten while sampling (QuEST, Fig. 6).

The full-precision network samples; at every step the output of one attention or transformer block has k of its tokens
replaced. The paper says neither which blocks and steps it means nor how tokens are ranked: here each block in turn, all
steps, and the largest |x| over channels. Its text replaces by noise, its supplement by zeros: both are measured.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from quest import architectures
from quest.architectures.order import in_call_order, outermost
from quest.diffusion import sampling
from quest.report import drawing
from quest.studies import Row
from quest.studies.charts import distinct, line, short, start_figure, where, with_legend
from quest.studies.closeness import closeness
from quest.studies.subject import Subject

Filling = Literal["zeros", "noise"]
Choice = Literal["random", "largest"]
COUNTS = (1, 3)
FILLINGS: tuple[Filling, ...] = ("zeros", "noise")
CHOICES: tuple[Choice, ...] = ("random", "largest")


@dataclass
class Corruption:
    """Overwrites ``count`` tokens of each sample: random ones, or those of largest |x|, by zeros or by normal noise of
    the sample's own mean and deviation."""

    count: int
    choice: Choice
    filling: Filling
    seed: int = 0

    def __post_init__(self) -> None:
        self._random = torch.Generator().manual_seed(self.seed)
        self.tokens = 0  # of the block, as last seen

    def overwrite(self, x: Tensor) -> Tensor:
        """Of an image (N, C, H, W), whose pixels are its tokens, or a sequence (N, tokens, C)."""
        if x.ndim == 4:
            return self.overwrite(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
        self.tokens = x.shape[1]
        if self.choice == "random":
            scores = torch.rand(x.shape[:2], generator=self._random).to(x.device)
        else:
            scores = x.abs().amax(2)
        chosen = scores.topk(min(self.count, self.tokens), dim=1).indices
        into = torch.zeros_like(x[:, : chosen.shape[1]])
        if self.filling == "noise":
            noise = torch.randn(into.shape, generator=self._random).to(x)
            into = x.mean((1, 2), keepdim=True) + x.std((1, 2), keepdim=True) * noise
        return x.scatter(1, chosen.unsqueeze(2).expand_as(into), into)


def measure(subject: Subject) -> list[Row]:
    """A row for each block in network order, choice of tokens, filling and count."""
    network, settings = subject.model.network, subject.settings
    images = range(settings.analysis.images)

    def draw() -> Tensor:
        return sampling.draw(subject.model, network, settings, subject.seed, images, subject.device)

    targets, rows = draw(), []
    for (name, block), choice, filling, count in itertools.product(
        blocks(network, subject.model.example()).items(), CHOICES, FILLINGS, COUNTS
    ):
        corruption = Corruption(count, choice, filling, subject.seed)
        with corrupting(block, corruption):
            drawn = draw()
        rows.append(
            {
                "block": name,
                "block_tokens": corruption.tokens,
                "choice": choice,
                "filling": filling,
                "tokens": count,
                **closeness(drawn, targets),
            }
        )
    return rows


def blocks(network: nn.Module, example: tuple[Any, ...]) -> dict[str, nn.Module]:
    """Blocks of tokens, and attention outside any, in the order in which a call with ``example`` reaches them.

    Raises ValueError where there is none.
    """
    found = outermost(network, architectures.of(network).token_blocks)
    if not found:
        raise ValueError(f"{type(network).__name__} has no attention block; there is no token to overwrite")
    return {name: found[name] for name in in_call_order(network, example, found)}


@contextmanager
def corrupting(block: nn.Module, corruption: Corruption) -> Iterator[None]:
    """Within, the output of ``block`` is corrupted."""

    def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return corruption.overwrite(output)

    handle = block.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def chart(dataset: str, rows: Sequence[Row]) -> Figure:
    """A panel a filling; over the blocks, a line for each choice and count of tokens."""
    images, fillings, blocks = rows[0]["images"], distinct(rows, "filling"), distinct(rows, "block")
    title = (
        f"{dataset}: closeness to the intact sample when a few tokens of one block are overwritten ({images} images)"
    )
    figure, panels = start_figure(title, 13, 5.4, 1, len(fillings), sharey=True)
    labels = [f"{short(block)} ({where(rows, block=block)[0]['block_tokens']})" for block in blocks]
    for axes, filling in zip(panels, fillings, strict=True):
        for index, (choice, count) in enumerate(dict.fromkeys((row["choice"], row["tokens"]) for row in rows)):
            mine = where(rows, filling=filling, choice=choice, tokens=count)
            label = f"{count} token{'s' if count > 1 else ''}, {'largest |x|' if choice == 'largest' else choice}"
            line(axes, index, [(blocks.index(row["block"]), row["psnr"], row["psnr_se"]) for row in mine], label)
        axes.set_xticks(range(len(blocks)), labels, rotation=35, ha="right", size=8)
        drawing.plain(
            axes, f"Overwritten by {filling}, at every step", "block (its tokens)", "PSNR to the intact sample (dB) ↑"
        )
    return with_legend(figure, panels[0])
