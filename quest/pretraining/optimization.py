"""The loop that every network of an embedded dataset is trained by."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import tqdm

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
) -> float:
    """Train all parameters of ``module`` by AdamW; the rate rises, then falls to 0 along a cosine.

    loss_of: the loss of a step. after: called when a step is taken. half: multiply in bfloat16 on a GPU.
    Returns the running mean of the loss over the last hundred steps. Raises ValueError when it is not finite.
    """
    device = next(module.parameters()).device
    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    warmup = max(1, round(WARMUP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warmup) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    recent = torch.zeros((), device=device)
    progress = tqdm(range(steps), desc=name, mininterval=5)
    for step in progress:
        with torch.autocast(device.type, torch.bfloat16, enabled=half and device.type == "cuda"):
            loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if after is not None:
            after(step)
        recent.lerp_(loss.detach().float(), max(0.01, 1 / (step + 1)))
        if step % 500 == 499:
            progress.set_postfix(loss=f"{recent.item():.4f}")
    if not math.isfinite(recent.item()):
        raise ValueError(f"{name}: the loss is {recent.item()} after {steps} steps at lr {lr}; lower the learning rate")
    module.eval()
    return recent.item()
