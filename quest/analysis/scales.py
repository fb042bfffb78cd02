"""How activation scales change over the sampling steps, by what the quantized values are for."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from quest.analysis import Row
from quest.analysis.subject import Subject
from quest.quantization.network import QuantizedNetwork
from quest.quantization.quantizers import ActivationQuantizer


def measure(subject: Subject) -> list[Row]:
    """A row for each checkpoint with several sets of scales, role and set; see `drift`.

    Raises ValueError when every checkpoint has one set: then nothing can change.
    """
    timesteps = subject.model.sampler(subject.settings.sampler).timesteps.tolist()
    rows = []
    for checkpoint in subject.checkpoints():
        network, sets = checkpoint.network, checkpoint.network.step.sets
        if sets == 1:
            continue
        length = len(timesteps) // sets
        for role, ratios in drift(network).items():
            rows += [
                {
                    "method": checkpoint.method,
                    "bits": str(network.recipe.bits),
                    "role": role,
                    "sites": len(ratios),
                    "set": index,
                    "first_timestep": timesteps[index * length],
                    "last_timestep": timesteps[(index + 1) * length - 1],
                    "mean_ratio": of_set.mean().item(),
                    "min_ratio": of_set.min().item(),
                    "max_ratio": of_set.max().item(),
                }
                for index, of_set in enumerate(ratios.T)
            ]
    if not rows:
        raise ValueError("every checkpoint has one set of activation scales for all steps; there is no drift to show")
    return rows


def drift(network: QuantizedNetwork) -> dict[str, Tensor]:
    """By role, (sites, sets): the scale of each activation quantizer, a mean where it has many, over its mean over
    sets. Roles are those of layers, and "operand q" and so on for attention products."""
    role_of: dict[int, str] = {
        id(site): str(layer.role)
        for layer in network.layers().values()
        for site in layer.input_quantizer.modules()
        if isinstance(site, ActivationQuantizer)
    }
    by_role: dict[str, list[Tensor]] = defaultdict(list)
    for name, site in network.sites().items():
        scale = site.scale.detach().flatten(1).double().mean(1)
        by_role[role_of.get(id(site), f"operand {name.rpartition('.')[2]}")].append(scale / scale.mean())
    return {role: torch.stack(ratios).cpu() for role, ratios in by_role.items()}
