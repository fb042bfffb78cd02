"""Block-wise learned rounding of the weights: AdaRound on the blocks that an architecture is made of.

Units in execution order. Grouping "blocks" takes each block as it is; "temporal" first learns the time embedding and
its projections into all residual blocks as one unit, which depends on the timestep alone, and later units leave them
as they are (TFMQ-DM).
A unit's inputs come from the network with all weights quantized (those before it with their learned rounding, those
after it rounded to nearest) and activations in full precision; its targets come from the full-precision network
(Q-Diffusion, section 3). Minimised for each unit:
    Σ_channels |out_q - out|², averaged over the rest,  +  λ · Σ (1 - |2h - 1|^β)
with the second term off during warm-up and β falling linearly afterwards. The result is one bit for each weight, kept
beside the scales, and shared by every method that starts from this grouping at these weight bits.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from quest import artifacts
from quest.architectures.order import in_call_order
from quest.config.learning import ReconstructionSettings
from quest.config.method import Grouping, Rounding
from quest.config.quantizer import OF_WEIGHTS
from quest.diffusion.denoiser import Denoiser
from quest.graphs import Replayed
from quest.learning import optimizers, recording
from quest.learning import progress as kept
from quest.learning.adaround import LearnedRounding
from quest.learning.cache import Cache
from quest.learning.calibration import Calibration, Samples
from quest.learning.recording import Needs, Walk
from quest.quantization import packing
from quest.quantization.layers import QuantizedLayer
from quest.quantization.network import QuantizedNetwork
from quest.quantization.quantizers import WeightQuantizer
from quest.quantization.rounding import Fixed

log = logging.getLogger(__name__)

_CHUNK = 64  # samples of one full call while inputs and targets are recorded


@dataclass(frozen=True)
class Unit:
    """Layers whose weights are rounded together, and the module that computes with them: a block, or a single layer.

    layers: by their names in the network. entry: the module of the network whose arguments ``module`` is called with,
    where ``module`` is not itself one that the network calls.
    """

    name: str
    module: nn.Module
    layers: dict[str, QuantizedLayer]
    entry: nn.Module | None = None

    def parts(self) -> dict[str, tuple[WeightQuantizer, Tensor]]:
        """Weight quantizers with their weights, by the name that the artifact uses."""
        return _parts(self.layers)

    def without(self, names: Container[str]) -> Unit:
        """The same unit, some of whose layers keep the rounding that they have."""
        return replace(self, layers={name: layer for name, layer in self.layers.items() if name not in names})


def units(network: QuantizedNetwork, grouping: Grouping = "blocks") -> list[Unit]:
    """Units of a network with weights on grids, in the order in which they are learned."""
    blocks = [unit for unit in _blocks(network) if unit.layers]
    if grouping == "blocks":
        return blocks
    temporal = network.architecture.temporal()
    layers = {name: layer for name, layer in network.layers().items() if name in temporal.layers}
    first = Unit("temporal", temporal.module, layers, temporal.entry)
    others = (unit.without(layers) for unit in blocks)
    return [first, *(unit for unit in others if unit.layers)]


def _blocks(network: QuantizedNetwork) -> list[Unit]:
    """Blocks, and layers outside any, in the order in which one call of the network reaches them."""
    found = network.blocks()
    with network.quantizing(weights=False, activations=False):
        order = in_call_order(network, network.example, found)
    layers, whole = network.layers(), network.architecture.with_one_output
    return [
        Unit(
            name,
            whole(found[name]),
            {key: layers[key] for key in layers if f"{key}.".startswith(f"{name}.")},
            found[name],
        )
        for name in order
    ]


def reconstruct(
    network: QuantizedNetwork,
    calibration: Calibration,
    settings: ReconstructionSettings,
    seed: int,
    progress: Progress,
    grouping: Grouping = "blocks",
) -> dict[str, Any]:
    """Learn the rounding of every unit of ``network`` in place; returns the losses of each unit.

    Loss names: "nearest" before and "learned" after, the reconstruction term alone with hard rounding on all samples.
    Units that ``progress`` has already are taken from it; each finished unit is added to it.
    """
    losses = {}
    data = calibration.evenly(settings.samples)
    every = units(network, grouping)
    recorder = Recorder(network, every, data, settings.cache_mib, weights=True)
    with network.quantizing(weights=True, activations=False):
        for number, unit in enumerate(tqdm(every, desc="reconstruct", unit="unit", mininterval=5)):
            if unit.name not in progress.losses:
                with network.frozen():  # no weight changes while inputs and targets are recorded
                    cache = recorder.record(number)
                generator = torch.Generator().manual_seed(seed * 100_003 + number)
                losses_of_unit = learn_unit(unit, cache, settings, generator)
                progress.add(unit, losses_of_unit, cache)
            else:
                progress.put(unit)
            losses[unit.name] = progress.losses[unit.name]
    return losses


class Progress:
    """Decisions of finished units; kept on disk, so that a killed run goes on after its last finished unit.

    path: a file beside the output, removed when the stage ends; without, they are in memory alone. key: what the
    decisions depend on; a file of another key is not used. cache_mib: the largest cache of all finished units, on the
    device and in host memory.
    """

    def __init__(self, path: Path | None = None, key: dict[str, Any] | None = None):
        self._kept = kept.Progress(path, key)
        done = self._kept.get("units") or {"tensors": {}, "losses": {}, "cache_mib": {"device": 0.0, "host": 0.0}}
        self.tensors: dict[str, Tensor] = done["tensors"]
        self.losses: dict[str, dict[str, float]] = done["losses"]
        self.cache_mib: dict[str, float] = done["cache_mib"]

    @property
    def notes(self) -> dict[str, Any]:
        """What an artifact says of the finished units beside their decisions."""
        return {"losses": self.losses, "cache_mib": self.cache_mib}

    def add(self, unit: Unit, losses: dict[str, float], cache: Cache) -> None:
        """Keep the decisions of a unit that was just learned, from what ``cache`` holds."""
        for name, (quantizer, _weight) in unit.parts().items():
            assert isinstance(quantizer.rounding, Fixed)
            self.tensors |= {
                f"{name}.up": packing.pack_bits(quantizer.rounding.up),
                f"{name}.scale": quantizer.scale,
                f"{name}.zero_point": quantizer.zero_point.to(torch.int32),
            }
        self.losses[unit.name] = losses
        for where, size in {"device": cache.device_bytes, "host": cache.host_bytes}.items():
            self.cache_mib[where] = max(self.cache_mib[where], size / 2**20)
        self._kept.put("units", {"tensors": self.tensors, **self.notes})

    def put(self, unit: Unit) -> None:
        """Set the rounding of a unit as it was decided before."""
        _put(unit.parts(), self.tensors)

    def remove(self) -> None:
        """The stage is done."""
        self._kept.remove()


def apply(path: Path, network: QuantizedNetwork, denoiser: Denoiser, rounding: Rounding) -> str:
    """Set the rounding of a network's weights as an artifact says; returns the artifact's sha256.

    Raises ValueError when it is other rounding, or was made from another model or with another weight grid.
    """
    artifact = artifacts.load_tensors(path, "reconstruction")
    manifest = artifact.manifest
    if manifest.inputs["model"] != denoiser.sha256:
        raise ValueError(
            f"{path}: rounding of model {manifest.inputs['model'][:12]}…, but the model given is "
            f"{denoiser.sha256[:12]}…"
        )
    recipe = network.recipe
    for key, expected in {
        "weight_bits": recipe.bits.weight,
        **{key: getattr(recipe.quantizer, key) for key in OF_WEIGHTS},
        **rounding._asdict(),
    }.items():
        if (found := manifest.settings.get(key)) != expected:
            raise ValueError(f"{path}: reconstructed with {key} = {found}, expected {expected}")
    try:
        put(network, artifact.tensors)
    except KeyError as error:
        raise ValueError(f"{path}: no rounding of {error.args[0]}; reconstruct this network's weights again") from None
    return manifest.sha256


def put(network: QuantizedNetwork, decisions: dict[str, Tensor]) -> None:
    """Set the rounding of a network's weights as it was learned (`Progress.tensors`).

    Raises KeyError naming a weight that nothing was learned of.
    """
    parts = _parts(network.layers())
    if missing := sorted(name for name in parts if f"{name}.up" not in decisions):
        raise KeyError(missing[0])
    _put(parts, decisions)


def _put(parts: dict[str, tuple[WeightQuantizer, Tensor]], decisions: dict[str, Tensor]) -> None:
    for name, (quantizer, weight) in parts.items():
        # Not searched again: another device may find another scale, for which the decisions would be wrong.
        quantizer.scale.copy_(decisions[f"{name}.scale"])
        quantizer.zero_point.copy_(decisions[f"{name}.zero_point"])
        up = decisions[f"{name}.up"].to(weight.device)
        quantizer.rounding = Fixed(packing.unpack_bits(up, quantizer.ratio(weight).shape, f"{name}.up"))


def _parts(layers: dict[str, QuantizedLayer]) -> dict[str, tuple[WeightQuantizer, Tensor]]:
    return {
        f"{name}.weight.{part}": pair
        for name, layer in layers.items()
        for part, pair in enumerate(layer.weight_parts())
    }


def record(network: QuantizedNetwork, unit: Unit, data: Samples, cache_mib: int, *, weights: bool) -> Cache:
    """What `Recorder` records of one unit."""
    return Recorder(network, [unit], data, cache_mib, weights=weights).record(0)


class Recorder:
    """Inputs of each unit and its outputs in full precision, over all samples, one unit after another.

    cache_mib: budget on the device of the inputs and outputs of a unit, and in host memory of what the units before it
    gave. weights: whether the inputs come from the network with quantized weights, or in full precision too.
    """

    def __init__(
        self, network: QuantizedNetwork, units: Sequence[Unit], data: Samples, cache_mib: int, *, weights: bool
    ):
        self._network, self._data, self._budget, self._weights = network, data, cache_mib * 2**20, weights
        self._units = list(units)
        # A unit that is spread over the network is computed each time.
        self._entries = [unit.entry or unit.module for unit in units]
        whole = [i for i, unit in enumerate(units) if set(unit.layers.values()) <= set(self._entries[i].modules())]
        self._first = min(whole, default=0)
        entries = self._entries[self._first :]
        needs = None
        if len(entries) > 1 and len(whole) == len(entries):
            with network.quantizing(weights=False, activations=False):
                needs = Needs(lambda: network(*network.example), entries)
        self.bytes_a_sample = 0 if needs is None else needs.bytes * (1 + weights)
        kept = self._budget // max(1, self.bytes_a_sample) if needs is not None and needs.until else 0
        self._batches = torch.arange(len(data)).split(_CHUNK)
        self._walks = [
            [Walk(network, entries, needs.until) for _ in range(1 + weights)]
            if needs is not None and int(batch[-1]) < kept
            else None
            for batch in self._batches
        ]

    def record(self, index: int) -> Cache:
        """Of unit ``index``; the units before it must have what they are to keep from now on."""
        cache = Cache(self._budget, len(self._data))
        for number in range(len(self._batches)):
            with torch.no_grad(), self._network.quantizing(weights=False, activations=False):
                inputs = args, named = self._arguments(number, index, quantized=False)
                target = self._units[index].module(*args, **named)
            if self._weights:
                with torch.no_grad(), self._network.quantizing(weights=True, activations=False):
                    inputs = self._arguments(number, index, quantized=True)
            cache.add(inputs, target)
        return cache

    def _arguments(self, number: int, index: int, *, quantized: bool) -> recording.Arguments:
        inputs, walks = self._data.inputs(self._batches[number]), self._walks[number]
        if walks is None or index < self._first:
            found = recording.reach(self._network, inputs, self._entries[index])
        else:
            found = walks[quantized].arguments(inputs, index - self._first)
        if found is None:
            raise ValueError(f"one call of the network never reaches {self._units[index].name}")
        return found


def learn_unit(
    unit: Unit, cache: Cache, settings: ReconstructionSettings, generator: torch.Generator
) -> dict[str, float]:
    """AdaRound on one unit in place, ending with hard rounding; returns its losses, as `reconstruct` names them.

    Call it where weights are quantized and activations are not.
    """
    losses = {"nearest": error(unit, cache)}
    rounding = LearnedRounding(list(unit.layers.values()))
    optimizer = optimizers.adam([rounding.v], settings.lr)

    def step(batch: Tensor, weight: Tensor, beta: Tensor) -> tuple[()]:
        args, named, target = cache.take(batch)
        rounding.backward(distance(unit.module(*args, **named), target), weight, beta)
        rounding.update(optimizer)
        return ()

    batches = torch.randint(cache.samples, (settings.iterations, settings.batch_size), generator=generator)
    batches, weights, betas = (each.to(cache.device) for each in (batches, *penalties(settings)))
    replayed = Replayed(step, cache.on_device, setting="reconstruction.batch_size")
    with rounding.applied():
        for batch, weight, beta in zip(batches, weights, betas, strict=True):
            replayed(batch, weight, beta)
    rounding.decide()
    return losses | {"learned": error(unit, cache)}


def penalties(settings: ReconstructionSettings) -> tuple[Tensor, Tensor]:
    """Weight and exponent of the rounding term at each iteration, (iterations,) float32 each."""
    iteration = torch.arange(1, settings.iterations + 1, dtype=torch.float64)
    warmup = settings.warmup * settings.iterations
    first, last = settings.beta
    beta = first + ((iteration - warmup) / (settings.iterations - warmup)).clamp(min=0) * (last - first)
    return torch.where(iteration > warmup, settings.rounding_weight, 0.0).float(), beta.float()


def distance(output: Tensor, target: Tensor, power: float = 2.0) -> Tensor:
    """|error|^power summed over axis 1 (channels of images, tokens of sequences), averaged over the rest."""
    return (output - target).abs().pow(power).sum(1).mean()


@torch.no_grad()
def error(unit: Unit, cache: Cache, samples: Tensor | None = None, power: float = 2.0) -> float:
    """`distance` of a unit's outputs from its targets, over the given samples of its cache, or all of them."""
    samples, total = torch.arange(cache.samples) if samples is None else samples, 0.0
    for batch in samples.split(_CHUNK):
        args, named, target = cache.take(batch)
        total += distance(unit.module(*args, **named), target, power).item() * len(batch)
    return total / len(samples)
