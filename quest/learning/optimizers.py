"""The optimizers that everything is learned with, such that a step of them can be replayed (`quest.graphs`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def adam(parameters: Iterable[Tensor], lr: float) -> torch.optim.Adam:
    """Adam; its rate is a tensor on the device of the parameters, and may be changed in place (`set_rates`)."""
    parameters = list(parameters)
    return torch.optim.Adam(parameters, lr=_rate(parameters, lr), **_how(parameters))


def begun(optimizer: torch.optim.Adam, parameter: Tensor) -> list[Tensor]:
    """What the optimizer keeps for ``parameter``, made before its first step: both moments and the count of steps."""
    count = torch.zeros((), device=parameter.device)  # on the device, as fused Adam has it
    state = {"step": count, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
    optimizer.state[parameter] = state
    return list(state.values())


def adamw(groups: list[dict[str, Any]], weight_decay: float) -> torch.optim.AdamW:
    """AdamW on groups of parameters with rates of their own, "lr", which become tensors as in `adam`."""
    groups = [group | {"lr": _rate(group["params"], group["lr"])} for group in groups]
    every = [parameter for group in groups for parameter in group["params"]]
    return torch.optim.AdamW(groups, weight_decay=weight_decay, **_how(every))


def set_rates(optimizer: torch.optim.Optimizer, rates: Iterable[float]) -> None:
    """Give each group of parameters its rate for the coming steps."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"].fill_(rate)


def _rate(parameters: list[Tensor], lr: float) -> Tensor:
    return torch.tensor(lr, device=parameters[0].device if parameters else None)


def _how(parameters: list[Tensor]) -> dict[str, Any]:
    """One kernel for all parameters; on a GPU with a step count on the device."""
    return {"fused": True, "capturable": bool(parameters) and parameters[0].device.type == "cuda"}
