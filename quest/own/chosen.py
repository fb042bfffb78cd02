"""The steps of a network whose layers have weight bits of their own, which are chosen after calibration."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from quest.config.dataset import DatasetSettings
from quest.config.method import Rounding
from quest.config.sampling import SamplerSettings
from quest.diffusion import denoiser as denoisers
from quest.learning import calibration as calibrations
from quest.learning.progress import Progress
from quest.own import choice as choices
from quest.own import layerwise
from quest.own.choice import Candidates, Wish
from quest.own.source import Source
from quest.own.steps import ByStages
from quest.own.work import Work
from quest.quantization import mixed
from quest.quantization.recipe import Recipe

log = logging.getLogger(__name__)


class ByLayers(ByStages):
    """As the stages, at the bits that a wish leaves each layer. candidates: the layers that may have bits of their
    own."""

    def __init__(
        self,
        source: Source,
        sampler: SamplerSettings,
        work: Work,
        seed: int,
        device: torch.device,
        wish: Wish,
        candidates: Candidates,
    ):
        super().__init__(source, sampler, work, seed, device)
        self.wish, self.candidates = wish, candidates

    @property
    def chosen(self) -> bool:
        """Whether the bits are chosen."""
        return "choice" in self._work.state

    def choose(self, settings: DatasetSettings, calibration: Path) -> None:
        """Choose the bits of each layer, and keep the choice."""
        denoiser = denoisers.load(self.file, self._device)
        data = calibrations.load(calibration, denoiser, settings).to(self._device)
        key = {"request": self._work.state["request_sha256"], "calibration": data.sha256}
        progress = Progress(self._work.file("choice.progress.safetensors"), key)
        given = self.file, settings, data, self._seed, self._device, progress
        chosen = choices.choose(self.wish, self.candidates, *given)
        log.info("%s", choices.text(chosen, self.wish))
        self._work.keep(choice=chosen.plain())
        progress.remove()

    def mixture(self, most: str) -> dict[str, Any]:
        """What was asked for and chosen, for the checkpoint and the report. most: the bits that no layer exceeds."""
        chosen = {name: value for name, value in self._work.state["choice"].items() if name != "bits"}
        return {"wish": self.wish._asdict(), "most": most, **chosen}

    @property
    def _recipe(self) -> Recipe:
        return self.candidates.of(self._work.state["choice"]["bits"])

    def reconstruct(
        self, settings: DatasetSettings, weight_bits: int, learned: Rounding, calibration: Path, output: Path
    ) -> None:
        layerwise.reconstruct(settings, self.file, self._recipe, learned, self._seed, calibration, output, self._device)

    def finetune(
        self, settings: DatasetSettings, method: str, bits: str, calibration: Path, rounding: Path | None, output: Path
    ) -> None:
        notes = {mixed.NAME: self.mixture(bits)}
        files = calibration, rounding, output, self._device
        layerwise.finetune(settings, self.file, self._recipe, method, self._seed, *files, notes)
