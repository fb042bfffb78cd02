"""What a study looks at: a dataset's model, networks quantized from it, and fresh states of its sampler."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from quest import methods
from quest.config.dataset import DatasetSettings
from quest.config.learning import CalibrationSettings
from quest.config.values import Bits
from quest.deploy import checkpoints, start
from quest.deploy.checkpoints import Checkpoint
from quest.diffusion import denoiser as denoisers
from quest.diffusion.denoiser import Denoiser
from quest.learning import calibration as calibrations
from quest.learning import finetuning, reconstruction
from quest.learning.calibration import Calibration, Samples
from quest.learning.finetuning import calibrate_activations
from quest.noise import HELD_OUT
from quest.quantization.network import QuantizedNetwork
from quest.quantization.policy import Policy


@dataclass(frozen=True)
class Subject:
    """files: of a study, by name. seed: of the chain that made them."""

    settings: DatasetSettings
    files: Mapping[str, Sequence[Path]]
    seed: int
    device: torch.device

    @cached_property
    def model(self) -> Denoiser:
        """The full-precision model."""
        return denoisers.load(self.files["model"][0], self.device)

    @cached_property
    def calibration(self) -> Calibration:
        """What the methods were calibrated on."""
        return calibrations.load(self.files["calibration"][0], self.model, self.settings).to(self.device)

    @property
    def bits(self) -> Bits:
        """The bit-width that is studied."""
        return Bits.parse(self.settings.analysis.bits)

    def states(self) -> Samples:
        """States of the full-precision sampler at a few evenly spread steps, in the layout of calibration data.

        From noise that neither calibration nor finetuning has seen, so that what was trained is not flattered.
        """
        steps, most = self.settings.sampler.steps, self.settings.analysis.steps
        few = max(count for count in range(1, most + 1) if steps % count == 0)
        return self.fresh(few, self.settings.analysis.samples)

    def fresh(self, steps: int, trajectories: int) -> Samples:
        """States of the full-precision sampler at ``steps`` evenly spread steps, on trajectories that nothing has
        seen."""
        few = CalibrationSettings(steps=steps, samples_per_step=trajectories)
        settings = self.settings.model_copy(update={"calibration": few})
        states = calibrations.record(self.model, settings, self.seed + HELD_OUT, self.device).to(self.device)
        return states.samples(len(states))

    def quantized(
        self, bits: Bits, sets: int = 1, policy: Policy | None = None, calibrated: bool = True
    ) -> QuantizedNetwork:
        """The model rounded to nearest, its activation scales from calibration data; under QuEST's policy unless given
        another."""
        recipe = start.recipe_of(self.settings, self.model, "quest", bits)
        recipe = replace(recipe, sets=sets, policy=policy or recipe.policy)
        network = QuantizedNetwork(self._copy().network, recipe, self.model.example())
        if calibrated:
            calibrate_activations(network, self.calibration)
        return network

    def reconstructed(
        self, bits: Bits, sets: int = 1, policy: Policy | None = None, calibrated: bool = True
    ) -> QuantizedNetwork:
        """The same with the learned rounding of its weights, what finetuning starts from. A policy may change the bits
        of activations alone."""
        network = self.quantized(bits, sets, policy, calibrated=False)
        rounding = methods.starts_from("quest", self.settings.methods.quest)
        if rounding is None:
            raise ValueError("methods.quest.rounding: found nearest, expected learned, which the study looks at")
        reconstruction.apply(self.files["reconstruction"][0], network, self.model, rounding)
        if calibrated:
            calibrate_activations(network, self.calibration)
        return network

    def checkpoint(self) -> Checkpoint:
        """The finetuned network. Raises ValueError for one of another bit-width than is studied."""
        path = self.files["checkpoint"][0]
        loaded = self._loaded(path)
        if loaded.network.recipe.bits != self.bits:
            raise ValueError(f"{path}: a checkpoint of {loaded.network.recipe.bits}; analysis.bits is {self.bits}")
        return loaded

    def checkpoints(self) -> Iterator[Checkpoint]:
        """One after another, each a network of its own."""
        for path in self.files["checkpoints"]:
            yield self._loaded(path)

    def _loaded(self, path: Path) -> Checkpoint:
        loaded = checkpoints.load(path, self._copy())
        checkpoints.require_sampler(path, loaded, self.settings.sampler)
        return loaded

    def _copy(self) -> Denoiser:
        """The model again, for a network that is taken over."""
        return replace(self.model, network=copy.deepcopy(self.model.network))


@torch.no_grad()
def outputs(
    network: QuantizedNetwork, states: Samples, names: Sequence[str] | None = None
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Each step of ``states``, noisiest first, with the outputs of the layers ``names`` (of all unless given)."""
    layers = network.layers()
    for step in states.steps.unique().tolist():
        with recording({name: layers[name] for name in names or layers}) as found:
            finetuning.predict(network, states, (states.steps == step).nonzero().flatten())
        yield step, found


@contextmanager
def recording(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Within, the last output of each of ``modules`` by name, outside the graph."""
    found: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found[name] = output.detach()

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
