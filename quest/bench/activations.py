"""What a step of finetuning the papers' U-Nets keeps for its backward pass, and takes within a limit, from shapes.

Networks are on torch's meta device, so that nothing is computed: bytes are those of tensors, of the plain operations.
What a library's kernels take to compute in is not in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from quest import architectures
from quest.architectures import Inputs
from quest.bench import networks
from quest.config.methods.quest import QuestSettings
from quest.config.quantizer import QuantizerSettings
from quest.config.values import Bits
from quest.learning import finetuning, recomputing, turns
from quest.learning.finetuning import Stage
from quest.learning.recomputing import Kept
from quest.methods import quest
from quest.quantization.network import QuantizedNetwork
from quest.quantization.recipe import Recipe
from quest.report import text

STAGES = ("tla", "cma", "full")
_STEPS = 20
_FLOAT = 4  # bytes
_OF_THE_NETWORK = 3  # its weights, those on their grids, and its teacher's
_GIB = 2**30


class Row(NamedTuple):
    """What a step keeps, and bytes that it takes beside: weights, their gradients and Adam's moments."""

    stage: str
    batch: int
    kept: Kept
    weights: int


def run(names: Sequence[str], batches: Sequence[int], limit: float) -> str:
    """Text tables: each stage of QuEST on each network of `networks.NETWORKS`. limit: GiB."""
    of_all = ("kept, all again", "peak, all again")
    head = ("stage", "batch", "weights", "kept", "peak", *of_all, f"again for {limit:g} GiB")
    tables = []
    for name in names:
        rows = [head, *(_cells(row, limit * _GIB) for row in rows_of(networks.make(name, "meta"), name, batches))]
        tables.append(f"{name}, GiB, W4A4\n{text.table(rows)}")
    return "\n\n".join(tables)


def rows_of(model: nn.Module, name: str, batches: Sequence[int]) -> Iterator[Row]:
    """What steps of each stage keep, at each batch. model: on the meta device, called like the network ``name``."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    recipe = Recipe(Bits(4, 4), QuantizerSettings(weight_search="max"), sets=1, steps=_STEPS)
    network = QuantizedNetwork(model, recipe, architectures.of(model).example()[:2])  # a context it has by itself
    network.step.widths = torch.zeros(_STEPS, dtype=torch.long)  # which is read, and so cannot be without numbers
    network.set_step(0)
    for stage in (quest.STAGES[each](network, QuestSettings()) for each in STAGES):
        with turns.trained(stage.sites), network.frozen(but=stage.layers), _training(stage) as trained:
            for batch in batches:
                x = torch.empty(batch, *networks.shape(name), device="meta")
                kept = recomputing.measure(network, lambda stage=stage, x=x: _loss(network, stage, x))
                weights = _OF_THE_NETWORK * parameters + recomputing.OF_A_WEIGHT * trained
                yield Row(stage.name, batch, kept, weights * _FLOAT)


@contextmanager
def _training(stage: Stage) -> Iterator[int]:
    """Within, the stage's weights want gradients; how many they are."""
    weights = stage.weights()
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield sum(weight.numel() for weight in weights)
    finally:
        for weight in weights:
            weight.requires_grad_(False)


def _loss(network: QuantizedNetwork, stage: Stage, x: Tensor) -> Tensor:
    """Both terms of a step's loss, against targets of the same shapes."""
    with finetuning.outputs_of(stage.layers) as outputs:
        noise = architectures.predict(network, Inputs(x, torch.zeros(len(x), device=x.device)))
    local = torch.stack([mse_loss(output, torch.empty_like(output)) for output in outputs.values()]).mean()
    return local + mse_loss(noise, torch.empty_like(noise))


def _cells(row: Row, limit: float) -> tuple[str, ...]:
    kept, every = row.kept, list(row.kept.inside)
    again = kept.blocks_for(limit - row.weights)
    sizes = (row.weights, kept.bytes(), row.weights + kept.peak(), kept.bytes(every), row.weights + kept.least())
    chosen = "too much" if again is None else f"{len(again)} of {len(every)} blocks"
    return row.stage, str(row.batch), *(f"{size / _GIB:.1f}" for size in sizes), chosen
