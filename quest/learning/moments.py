"""The noise that a quantized network adds to its predictions, in moments: full precision and it side by side on the
states of full precision's trajectories, which are drawn for this (PTQD, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from quest.diffusion import denoiser as denoisers
from quest.diffusion.correction import Correction
from quest.learning.calibration import Calibration
from quest.noise import SampleNoise
from quest.quantization.network import QuantizedNetwork

_BATCH = 64


@dataclass(frozen=True)
class Moments:
    """What the statistics need of ε and Δ.

    sums: (5, steps, samples, channels) float64, sums over pixels of ε, Δ, ε², Δ² and ε·Δ. pixels: of a channel.
    """

    sums: Tensor
    pixels: int

    @classmethod
    def of(cls, noise: Tensor, error: Tensor) -> Moments:
        """Moments of one step; both (samples, C, H, W)."""
        e, d = noise.double().flatten(2), error.double().flatten(2)
        sums = torch.stack([term.sum(2) for term in (e, d, e * e, d * d, e * d)])
        return cls(sums.unsqueeze(1), e.shape[2])

    @classmethod
    def at(cls, moments: Mapping[int, Moments], bits: Sequence[int]) -> Moments:
        """Of each step, the moments at its bits; ``moments``: of all steps at each bit-width."""
        sums = torch.stack([moments[of_step].sums[:, step] for step, of_step in enumerate(bits)], 1)
        return cls(sums, moments[bits[0]].pixels)

    def noise_to_signal(self) -> Tensor:
        """ΣΔ² / Σε², (steps,)."""
        _, _, ee, dd, _ = self.sums.sum((2, 3))
        return dd / ee

    def slope(self) -> Tensor:
        """k, (steps,): least squares with an intercept."""
        e, d, ee, _, ed = self.sums.sum((2, 3))
        return self._spread(ed, e, d) / self._spread(ee, e, e)

    def correlation(self) -> Tensor:
        """Pearson correlation of ε and Δ, (steps,)."""
        e, d, ee, dd, ed = self.sums.sum((2, 3))
        return self._spread(ed, e, d) / (self._spread(ee, e, e) * self._spread(dd, d, d)).sqrt()

    def means(self) -> tuple[Tensor, Tensor]:
        """Means of ε and of Δ, (steps, C) each."""
        e, d = self.sums[:2].mean(2) / self.pixels
        return e, d

    def deviation(self) -> Tensor:
        """s, (steps,): the standard deviation within a sample of what k⁺·ε leaves of Δ, averaged over samples."""
        k = self.slope().clamp(min=0).unsqueeze(1)
        e, d, ee, dd, ed = self.sums.sum(3)
        count = self.sums.shape[3] * self.pixels
        squares = (dd - d * d / count) - 2 * k * (ed - e * d / count) + k * k * (ee - e * e / count)
        return (squares.clamp(min=0) / (count - 1)).sqrt().mean(1)

    def error(self, correction: Correction | None = None) -> Tensor:
        """Mean of |e - ε|², (steps,), e being the prediction, corrected or as it is."""
        e, d, ee, dd, ed = self.sums
        if correction is None:
            return dd.mean((1, 2)) / self.pixels
        k = correction.slope.double().clamp(min=0).view(-1, 1, 1)
        b = correction.bias.double().unsqueeze(1)
        squares = dd + k * k * ee + self.pixels * b * b - 2 * (k * ed + b * d - k * b * e)
        return (squares / (1 + k) ** 2).mean((1, 2)) / self.pixels

    def _spread(self, ab: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Covariance from sums over everything, times the squared number of values."""
        return self.sums[0, 0].numel() * self.pixels * ab - a * b


@torch.no_grad()
def measure(network: QuantizedNetwork, calibration: Calibration, seed: int, trajectories: range) -> Moments:
    """ε and Δ on full-precision trajectories, which are drawn from noise of their own.

    Full precision is the network with its switches off, so no parameter of it may have been trained.
    """
    sampler = calibration.sampler
    outputs = denoisers.Outputs(network, replayed=True)
    batches = []
    with network.frozen():
        for batch in tqdm(torch.tensor(trajectories).split(_BATCH), desc="measure noise", unit="batch", mininterval=5):
            moments: list[Moments] = []
            noise = SampleNoise("correction", seed, batch.tolist(), calibration.x.shape[2:])
            guidance = calibration.guidance(batch.tolist())
            predict = denoisers.predictor(outputs, guidance)
            walk = sampler.walk(noise, calibration.x.device)
            for call in sampler.calls():
                with network.quantizing(weights=False, activations=False):
                    full = predict(walk.x, call)
                if len(moments) == call.step:  # one entry a step, also where PLMS calls twice
                    moments.append(Moments.of(full, predict(walk.x, call) - full))
                walk.step(call, full)
            batches.append(torch.cat([each.sums for each in moments], 1).cpu())
    return Moments(torch.cat(batches, 2), calibration.x[0, 0, 0].numel())
