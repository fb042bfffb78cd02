"""Finetuning of chosen weights and activation scales of a quantized network against its full-precision teacher."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.nn.utils import parametrize
from tqdm import tqdm

from quest import architectures
from quest.architectures import Inputs
from quest.graphs import Replayed
from quest.learning import optimizers
from quest.learning.cache import UNLIMITED, Cache
from quest.learning.calibration import Calibration, Samples
from quest.learning.progress import NOT_KEPT, Progress, Training
from quest.learning.recomputing import Limited
from quest.learning.turns import in_turns
from quest.quantization import grid as grids
from quest.quantization.granularity import Offsets
from quest.quantization.grid import MIN_SCALE
from quest.quantization.layers import QuantizedLayer
from quest.quantization.network import QuantizedNetwork
from quest.quantization.quantizers import ActivationQuantizer, calibrating

log = logging.getLogger(__name__)
_CALIBRATION_SAMPLES = 64  # of each group of steps, in one batch
_TEACHER_BATCH = 64


@torch.no_grad()
def calibrate_activations(network: QuantizedNetwork, calibration: Calibration) -> None:
    """Choose the activation scales of every group of sampling steps from samples of its steps, weights quantized.

    One call a group: a layer is calibrated on inputs that the layers before it already quantize.
    """
    data = calibration.samples(len(calibration))
    with calibrating(network):
        for members in sets_of(network, data):
            # Evenly from all steps of the group.
            few = torch.linspace(0, len(members) - 1, min(_CALIBRATION_SAMPLES, len(members))).round().long()
            predict(network, data, members[few])


@contextmanager
def running_ranges(network: QuantizedNetwork, momentum: float, first: grids.Search = "max") -> Iterator[None]:
    """Within, activation quantizers follow what they see, starting anew: m ← momentum · m + (1 - momentum) · min(x),
    likewise the maximum, and a grid that spans both and zero, set before the batch is quantized.

    first: how the grid for the first batch of a group of sampling steps is chosen. Raises ValueError at the end when a
    quantizer has seen a number that is not finite.
    """
    ranges: dict[tuple[ActivationQuantizer, int], tuple[Tensor, Tensor]] = {}

    def follow(site: ActivationQuantizer, inputs: tuple[Tensor, ...]) -> None:
        index = network.step.index
        rows = site.granularity.rows(inputs[0])
        low, high = rows.aminmax(dim=1)
        if (site, index) in ranges:
            before = ranges[site, index]
            low, high = torch.lerp(low, before[0], momentum), torch.lerp(high, before[1], momentum)
            if isinstance(site.granularity, Offsets):  # a scale for all of the ranges
                site.choose(torch.stack([low, high], 1), index)
            else:
                site.put(index, *grids.from_range(low, high, site.grid))
        else:
            site.choose(rows, index, first)
        ranges[site, index] = low, high

    handles = [site.register_forward_pre_hook(follow) for site in network.sites().values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    for (site, _), bounds in ranges.items():  # asked once, for it waits for the device
        if not bool(torch.isfinite(torch.stack(bounds)).all()):
            raise ValueError(f"activation {site.name}: found values that are NaN or infinite, expected finite numbers")


def sets_of(network: QuantizedNetwork, data: Samples) -> list[Tensor]:
    """Positions in ``data`` of the samples of each group of sampling steps. Raises ValueError for an empty group."""
    step = network.step
    sets = [(step.set_of(data.steps) == index).nonzero().flatten() for index in range(step.sets)]
    for index, members in enumerate(sets):
        if not len(members):
            steps = step.steps_of(index)
            raise ValueError(
                f"no calibration sample for sampling steps {steps[0]} to {steps[-1]}, which have scales of their own; "
                f"record more steps (calibration.steps) or use fewer sets than {step.sets}"
            )
    return sets


def predict(network: QuantizedNetwork, data: Samples, batch: Tensor) -> Tensor:
    """Predicted noise of samples ``batch`` (positions in ``data``, all of one group of sampling steps)."""
    network.set_step(int(data.steps[batch[0]]))
    return architectures.predict(network, data.inputs(batch))


@dataclass(frozen=True)
class Stage:
    """One finetuning stage: what is trained, on how much data, and with which losses.

    layers: whose weights and biases are trained and whose outputs the local loss matches. sites: activation
    quantizers whose scales are trained. samples: of each recorded step in an epoch, which takes those that come next
    and after the last the first again. Groups of steps are interleaved, so that none is favoured by coming last.
    batch_setting: what the user calls ``batch_size``.
    """

    name: str
    layers: dict[str, QuantizedLayer]
    sites: list[ActivationQuantizer]
    epochs: int
    samples: int
    batch_size: int
    weight_lr: float
    scale_lr: float
    local_loss: bool = True
    global_loss: bool = True
    batch_setting: str = "batch_size"

    def __post_init__(self) -> None:
        if not (self.local_loss or self.global_loss):
            raise ValueError(f"{self.name}: both losses are off; switch on local_loss, global_loss or both")
        if not self.layers:
            raise ValueError(f"{self.name}: the network has no layer of the roles that this stage trains")

    @property
    def losses(self) -> list[str]:
        """Names of the losses that are switched on."""
        return [name for name, on in (("local", self.local_loss), ("global", self.global_loss)) if on]

    def weights(self) -> list[nn.Parameter]:
        """Weights and biases that are trained; of a layer with an adapter, the adapter alone."""
        return [parameter for layer in self.layers.values() for parameter in _trained(layer)]

    def steps(self, network: QuantizedNetwork, calibration: Calibration) -> int:
        """How often the optimizers step."""
        groups = sets_of(network, calibration.samples(self.samples))
        return self.epochs * sum(len(members.split(self.batch_size)) for members in groups)

    def samples_of(self, calibration: Calibration, epoch: int) -> Tensor:
        """Positions of an epoch's samples among all of ``calibration``, as many of each recorded step."""
        every, each = len(calibration), min(self.samples, len(calibration))
        chosen = ((torch.arange(each) + epoch * each) % every).sort().values
        return (torch.arange(len(calibration.steps)).unsqueeze(1) * every + chosen).flatten()

    def record(self, teacher: QuantizedNetwork, calibration: Calibration, budget: int = UNLIMITED) -> Cache:
        """The teacher's outputs on the samples of the first epoch: those of each layer by name, and as the target the
        noise.

        teacher: a network of which no weight was trained yet. budget: bytes on the device; what does not fit is in
        host memory.
        """
        targets = Cache(budget, len(self.samples_of(calibration, 0)))
        self.teach(teacher, calibration, 0, targets)
        return targets

    @torch.no_grad()
    def teach(self, teacher: QuantizedNetwork, calibration: Calibration, epoch: int, targets: Cache) -> None:
        """Put the teacher's outputs on an epoch's samples in the place of those that ``targets`` has."""
        data, known = calibration.samples(len(calibration)), teacher.layers()
        layers = {name: known[name] for name in self.layers} if self.local_loss else {}
        targets.refill()
        with teacher.quantizing(weights=False, activations=False):
            for batch in self.samples_of(calibration, epoch).split(_TEACHER_BATCH):
                with outputs_of(layers) as outputs:
                    noise = predict(teacher, data, batch)
                targets.add(((), outputs), noise)


def _trained(layer: QuantizedLayer) -> list[nn.Parameter]:
    if parametrize.is_parametrized(layer, "weight"):
        return list(layer.parametrizations["weight"][0].parameters())  # type: ignore[index]
    return [parameter for parameter in (layer.weight, layer.bias) if parameter is not None]


def finetune(
    network: QuantizedNetwork,
    calibration: Calibration,
    stage: Stage,
    targets: Cache,
    seed: int,
    progress: Progress = NOT_KEPT,
    teacher: QuantizedNetwork | None = None,
) -> list[dict[str, float]]:
    """Train ``stage`` in place; returns the mean of each loss term in each epoch, {"local", "global"}.

    targets: the teacher's outputs in the first epoch (`Stage.record`). teacher: whom to ask about later epochs, a
    network of which no weight was trained; without, each has the samples of the first.
    Epochs that ``progress`` has already are taken from it; each finished one is added to it.

    Adam on the weights keeps its state throughout; each group of steps has its own Adam for its activation scales.
    Only what is trained requires gradients. Everything is in eval mode.
    """
    data = calibration.samples(len(calibration))
    groups = sets_of(network, calibration.samples(stage.samples))  # in any epoch
    positions = stage.samples_of(calibration, 0).to(data.x.device)
    weights = stage.weights()
    order = torch.Generator().manual_seed(seed)
    history: list[dict[str, float]] = []
    with in_turns(stage.sites, stage.scale_lr) as turns, network.frozen(but=stage.layers):
        optimizer = optimizers.adam(weights, stage.weight_lr)
        training = Training([*weights, *(kept for of_set in turns.kept for kept in of_set)], [optimizer], order)
        if (kept := progress.get(stage.name)) is not None:
            training.resume(kept["training"])
            turns.bring()
            history = kept["history"]
        for parameter in weights:
            parameter.requires_grad_(True)

        @partial(Limited, network, setting=stage.batch_setting)
        def losses(batch: Tensor) -> dict[str, Tensor]:
            return _losses(network, data.inputs(positions[batch]), stage, targets, batch)

        def step(batch: Tensor) -> tuple[Tensor, ...]:
            terms = losses(batch)
            torch.stack(list(terms.values())).sum().backward()
            for used in (optimizer, turns.optimizer):
                used.step()
                used.zero_grad()
            keep_positive(turns.scales)
            return tuple(term.detach().double() for term in terms.values())

        replayed = Replayed(step, targets.on_device, setting=stage.batch_setting)
        try:
            left = range(len(history), stage.epochs)
            bar = tqdm(left, stage.name, stage.epochs, initial=len(history), unit="epoch", mininterval=5)
            for epoch in bar:
                turn = stage.samples_of(calibration, epoch).to(positions.device)
                if teacher is not None and not torch.equal(turn, positions):
                    stage.teach(teacher, calibration, epoch, targets)
                    positions.copy_(turn)
                batches = [
                    (index, batch)
                    for index, members in enumerate(groups)
                    for batch in members[torch.randperm(len(members), generator=order)].split(stage.batch_size)
                ]
                found = []
                for choice in torch.randperm(len(batches), generator=order).tolist():
                    index, batch = batches[choice]
                    network.set_step(network.step.steps_of(index)[0])
                    turns.use(index)
                    found.append(torch.stack(replayed(batch.to(data.x.device))))
                turns.keep()
                means = torch.stack(found).mean(0).tolist()  # waits for the device
                history.append(dict(zip(stage.losses, means, strict=True)))
                progress.put(stage.name, {"training": training.state(), "history": history})
                bar.set_postfix({name: f"{value:.3g}" for name, value in history[-1].items()})
        finally:
            for parameter in weights:
                parameter.requires_grad_(False)
    log.info("%s: first epoch %s, last %s", stage.name, history[0], history[-1])
    return history


def _losses(network: QuantizedNetwork, told: Inputs, stage: Stage, targets: Cache, batch: Tensor) -> dict[str, Tensor]:
    """local: mean_l MSE(O_l, Ô_l); global: MSE(ε, ε̂); those that are switched on."""
    with outputs_of(stage.layers if stage.local_loss else {}) as outputs:
        noise = architectures.predict(network, told)
    _, of_layers, of_network = targets.take(batch)
    losses = {}
    if stage.local_loss:
        local = [mse_loss(output, of_layers[name]) for name, output in outputs.items()]
        losses["local"] = torch.stack(local).mean()
    if stage.global_loss:
        losses["global"] = mse_loss(noise, of_network)
    return losses


@contextmanager
def outputs_of(layers: dict[str, QuantizedLayer]) -> Iterator[dict[str, Tensor]]:
    """Within, the outputs of layers as they come out, inside the graph: a local loss on them carries gradient."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            outputs[name] = output

        return hook

    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def keep_positive(scales: Sequence[Tensor]) -> None:
    """After an optimizer's step: no scale is left smaller than a grid can have."""
    torch._foreach_clamp_min_(list(scales), MIN_SCALE)  # type: ignore[reportPrivateImportUsage]  # one kernel for all
