"""The loop that every network of an embedded dataset is trained by."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, LinearLR
from tqdm import tqdm

WARMUP = 0.05  # share of the steps in which the learning rate rises
_EAGER = 3  # steps before a graph is recorded, in which cuDNN and cuBLAS choose their kernels and workspaces


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
) -> float:
    """Train all parameters of ``module`` by AdamW; the rate rises, then falls to 0 along a cosine.

    loss_of: the loss of a step. after: called when a step is taken. half: multiply in bfloat16 on a GPU.
    replayed: on a GPU, record a step as a CUDA graph and replay it, since small networks wait for launches most of the
    time; ``loss_of`` must do the same at every step, whatever its number, and read nothing back from the GPU.
    Returns the running mean of the loss over the last hundred steps. Raises ValueError when it is not finite.
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

    advance = _Replayed(take) if replayed else take
    recent = torch.zeros((), device=device)
    progress = tqdm(range(steps), desc=name, mininterval=5)
    for step in progress:
        loss = advance(step)
        schedule.step()
        if after is not None:
            after(step)
        recent.lerp_(loss.float(), max(0.01, 1 / (step + 1)))
        if step % 500 == 499:
            progress.set_postfix(loss=f"{recent.item():.4f}")
    if not math.isfinite(recent.item()):
        raise ValueError(f"{name}: the loss is {recent.item()} after {steps} steps at lr {lr}; lower the learning rate")
    module.eval()
    return recent.item()


class _Replayed:
    """A step of training as one CUDA graph, recorded after a few that are taken as they are."""

    def __init__(self, take: Callable[[int], Tensor]):
        self._take, self._stream = take, torch.cuda.Stream()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._loss = torch.empty(0)  # the graph's, which every replay writes

    def __call__(self, step: int) -> Tensor:
        if step < _EAGER:
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                loss = self._take(step)
            torch.cuda.current_stream().wait_stream(self._stream)
            return loss
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=self._stream):
                self._loss = self._take(step)
        self._graph.replay()
        return self._loss
