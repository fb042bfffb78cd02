"""The loop that every network of an embedded dataset is trained by."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, LinearLR
from tqdm import tqdm

from quest.graphs import Replayed

log = logging.getLogger(__name__)

_MARKS = 50  # at which the loss is kept
WARMUP = 0.05  # share of the steps in which the learning rate rises


def fit(
    module: nn.Module,
    loss_of: Callable[[int], Tensor],
    name: str,
    steps: int,
    lr: float,
    weight_decay: float = 1e-4,
    after: Callable[[int], None] | None = None,
    half: bool = False,
    replayed: bool = False,
) -> list[float]:
    """Train all parameters of ``module`` by AdamW; the rate rises, then falls to 0 along a cosine.

    loss_of: the loss of a step. after: called when a step is taken. half: multiply in bfloat16 on a GPU.
    replayed: on a GPU, record a step as a CUDA graph and replay it, since small networks wait for launches most of the
    time; ``loss_of`` must do the same at every step, whatever its number, and read nothing back from the GPU.
    Returns the running mean of the loss over the last hundred steps, at each fiftieth of the steps and at the end,
    which is last. Raises ValueError when that is not finite.
    """
    device = next(module.parameters()).device
    module.train()
    replayed &= device.type == "cuda"
    rate = torch.tensor(lr, device=device) if replayed else lr  # a graph reads it anew at every replay
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=rate, weight_decay=weight_decay, fused=True, capturable=replayed
    )
    warmup = max(1, round(WARMUP * steps))
    rising = LinearLR(optimizer, start_factor=1 / warmup, total_iters=max(1, warmup - 1))
    schedule = ChainedScheduler([rising, CosineAnnealingLR(optimizer, steps)])

    def take(step: int) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=half and device.type == "cuda"):
            loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    recent = torch.zeros((), device=device)
    graph = Replayed(lambda _on_device: (take(0),))
    marks = {steps * (mark + 1) // _MARKS - 1 for mark in range(_MARKS)}
    losses: list[float] = []
    progress = tqdm(range(steps), desc=name, mininterval=5)
    for step in progress:
        loss = graph(recent)[0] if replayed else take(step)
        schedule.step()
        if after is not None:
            after(step)
        recent.lerp_(loss.float(), max(0.01, 1 / (step + 1)))
        if step in marks:
            losses.append(recent.item())
            log.info("%s: step %d of %d, loss %.5f", name, step + 1, steps, losses[-1])
    if not math.isfinite(losses[-1]):
        raise ValueError(f"{name}: the loss is {losses[-1]} after {steps} steps at lr {lr}; lower the learning rate")
    module.eval()
    return losses
