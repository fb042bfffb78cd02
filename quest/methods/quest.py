"""QuEST (ICCV 2025, section 3.3): selective finetuning of a fully quantized network, in two short stages.

From weights with learned rounding, activation scales are calibrated for each group of sampling steps. Then, with the
full-precision network as teacher and its own sampling states as data,
1. time-embedding alignment (TLA) trains the time-embedding projections and the scales of their inputs;
2. attention-related channel alignment (CMA) trains attention-related layers and all other activation scales.
Each stage minimises  L = Σ_l ‖O_l − Ô_l‖² + L_G, with L_G on the predicted noise (eq. 2–7; both terms as means over
elements, the local ones averaged over layers, as in the released code). Everything else stays frozen: the other
weights, and the scales, zero points and learned rounding of all weights. For the paper's ablations, stages can be left
out, exchanged, or replaced by finetuning everything, and adapters can stand in for weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from quest.architectures import Places
from quest.config.methods.quest import QuestSettings
from quest.config.reading import unknown
from quest.config.values import Bits, width
from quest.learning.calibration import Calibration
from quest.learning.finetuning import Stage, calibrate_activations, finetune
from quest.learning.progress import NOT_KEPT, Progress
from quest.methods import Outcome
from quest.quantization.adapters import LowRank
from quest.quantization.layers import QuantizedLayer
from quest.quantization.network import QuantizedNetwork
from quest.quantization.policy import EVERYTHING, Policy
from quest.quantization.quantizers import ActivationQuantizer
from quest.quantization.roles import Role

TIME_EMBEDDING = (Role.TIME_MLP, Role.TIME_PROJECTION)


def quantize(
    network: QuantizedNetwork,
    calibration: Calibration,
    settings: QuestSettings,
    seed: int,
    progress: Progress = NOT_KEPT,
) -> Outcome:
    """Calibrate, then TLA, then CMA. Notes: each stage's losses and optimizer steps, the trained share."""
    calibrate_activations(network, calibration)
    stages = [STAGES[name](network, settings) for name in settings.stages]
    teacher = copy.deepcopy(network)  # before any weight moves
    if settings.folded:
        for layer in {id(layer): layer for stage in stages for layer in stage.layers.values()}.values():
            layer.fold()
    total = _parameters(network)
    trained: dict[int, nn.Parameter] = {}
    histories = {}
    for stage in stages:
        rank = None if stage.name == "tla" else settings.adapter_rank
        with nullcontext() if rank is None else adapted(stage.layers.values(), rank, seed):
            trained |= {id(parameter): parameter for parameter in stage.weights()}
            histories[stage.name] = train(network, teacher, calibration, stage, settings, seed, progress)
    notes = {
        "loss": histories,
        "optimizer_steps": {stage.name: stage.steps(network, calibration) for stage in stages},
        "trained_share": sum(parameter.numel() for parameter in trained.values()) / total,
    }
    return Outcome(notes)


def train(
    network: QuantizedNetwork,
    teacher: QuantizedNetwork,
    calibration: Calibration,
    stage: Stage,
    settings: QuestSettings,
    seed: int,
    progress: Progress = NOT_KEPT,
) -> list[dict[str, float]]:
    """One stage in place; returns what `finetune` does. teacher: the network before any weight of it was trained."""
    targets = stage.record(teacher, calibration, settings.cache_mib * 2**20)
    asked = teacher if settings.rotated else None
    return finetune(network, calibration, stage, targets, seed, progress, asked)


def paper_policy(bits: Bits, places: Places) -> Policy:
    """The paper makes no exception."""
    return replace(EVERYTHING, name="paper")


def time_embedding_alignment(network: QuantizedNetwork, settings: QuestSettings) -> Stage:
    """Stage 1: the projections of the time embedding into each residual block (C_TE), with their input scales."""
    layers, bits = _layers(network, (Role.TIME_PROJECTION,)), width(network.recipe.bits.activation)
    return Stage(
        name="tla",
        layers=layers,
        sites=_sites(layers.values()),
        epochs=_epochs(settings.tla_epochs, settings),
        samples=settings.tla_samples,
        batch_size=settings.tla_batch_size,
        batch_setting="methods.quest.tla_batch_size",
        weight_lr=settings.tla_weight_lr[bits],
        scale_lr=settings.tla_scale_lr[bits],
        local_loss=settings.local_loss,
        global_loss=settings.global_loss,
    )


def attention_alignment(network: QuantizedNetwork, settings: QuestSettings) -> Stage:
    """Stage 2: attention-related layers (C_A), with every activation scale outside the time embedding (s')."""
    time_sites = {id(site) for site in _sites(_layers(network, TIME_EMBEDDING).values())}
    bits = width(network.recipe.bits.activation)
    return Stage(
        name="cma",
        layers=_layers(network, settings.cma_layers),
        sites=[site for site in network.sites().values() if id(site) not in time_sites],
        epochs=_epochs(settings.cma_epochs, settings),
        samples=settings.cma_samples,
        batch_size=settings.cma_batch_size,
        batch_setting="methods.quest.cma_batch_size",
        weight_lr=settings.cma_weight_lr[bits],
        scale_lr=settings.cma_scale_lr[bits],
        local_loss=settings.local_loss,
        global_loss=settings.global_loss,
    )


def full_finetuning(network: QuantizedNetwork, settings: QuestSettings) -> Stage:
    """What selective finetuning is compared with (table 8): every layer and every activation scale, as stage 2 does."""
    every = {"layers": network.layers(), "sites": list(network.sites().values())}
    return replace(attention_alignment(network, settings), name="full", **every)


STAGES = {"tla": time_embedding_alignment, "cma": attention_alignment, "full": full_finetuning}


@contextmanager
def adapted(layers: Iterable[QuantizedLayer], rank: int, seed: int) -> Iterator[None]:
    """Within, each layer trains a low-rank adapter of its weight instead of the weight, added before the quantizer
    (QALoRA); afterwards it is part of the weight."""
    layers, generator = list(layers), torch.Generator().manual_seed(seed)
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight.detach(), rank, generator))
    try:
        yield
    finally:
        for layer in layers:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def _layers(network: QuantizedNetwork, roles: Sequence[str]) -> dict[str, QuantizedLayer]:
    known = [str(role) for role in Role]
    for role in roles:
        if role not in known:
            raise ValueError(f"methods.quest.cma_layers: {unknown(role, known)}")
    return {name: layer for name, layer in network.layers().items() if layer.role in roles}


def _sites(layers: Any) -> list[ActivationQuantizer]:
    """Quantizers of the inputs of ``layers``."""
    return [
        m for layer in layers for m in nn.Module.modules(layer.input_quantizer) if isinstance(m, ActivationQuantizer)
    ]


def _epochs(epochs: int, settings: QuestSettings) -> int:
    return max(1, round(settings.passes * epochs))


def _parameters(network: QuantizedNetwork) -> int:
    """Parameters of the model, without what its quantizers add."""
    scales = {id(site.scale) for site in network.sites().values()}
    return sum(p.numel() for p in network.network.parameters() if id(p) not in scales)
