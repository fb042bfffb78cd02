"""PTQD (NeurIPS 2023): a Q-Diffusion network, and a sampler that corrects for its quantization noise.

Full precision and quantized network predict side by side on states of the full-precision trajectory. Of each sampling
step, from the predicted noise ε and its error Δ = ε̂ - ε over all samples, channels and pixels,
    k = cov(ε, Δ) / var(ε),    bias_c = mean Δ_c,    s = mean over samples of std(Δ - k⁺·ε),    k⁺ = max(k, 0),
are the tables of the corrected sampling step (`quest.diffusion.correction`).

Activation bits may differ between sampling steps (section 3.4; an option, which the published tables do not use). A
network of several activation bit-widths over the same weights is quantized and measured at each of them, and a step
takes the fewest bits b with
    Σ ε² / Σ Δ_b²  >  ᾱ / (1 - ᾱ),
or the most where none suffices: noisy inputs leave room for coarse activations. Its statistics are those at its bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from quest.architectures import Places
from quest.config.methods.ptqd import PtqdSettings
from quest.config.values import Bits
from quest.diffusion import denoiser as denoisers
from quest.diffusion.correction import Correction
from quest.diffusion.samplers import Sampler
from quest.learning.calibration import Calibration
from quest.learning.progress import NOT_KEPT, Progress
from quest.learning.scales import calibrate_and_learn
from quest.methods import Outcome
from quest.noise import SampleNoise
from quest.quantization.network import QuantizedNetwork
from quest.quantization.policy import EIGHT, FULL, Policy
from quest.quantization.roles import Role

_BATCH = 64


def quantize(
    network: QuantizedNetwork,
    calibration: Calibration,
    settings: PtqdSettings,
    seed: int,
    progress: Progress = NOT_KEPT,
) -> Outcome:
    """Quantize as Q-Diffusion does, then measure the noise of the result; at each activation bit-width, if several.

    Notes: the losses of Q-Diffusion at each width, and its cost; the noise at each width and the bits chosen for each
    sampling step; its statistics; the mean squared error of the predicted noise, as it is and corrected, on
    trajectories that the statistics have not seen.
    """
    sampler, steps = calibration.sampler, calibration.sampler.steps
    everyone = range(settings.trajectories + settings.held_out)
    losses, cost, measured, held_out = {}, Counter(), {}, {}
    for bits in network.recipe.widths:
        network.use([bits] * steps)
        notes = calibrate_and_learn(network, calibration, settings, seed, progress.part(f"a{bits}"))
        losses[f"a{bits}"] = notes["loss"]
        measured[bits] = measure(network, calibration, seed, everyone[: settings.trajectories])
        held_out[bits] = measure(network, calibration, seed, everyone[settings.trajectories :])
        cost.update(notes["samples"] | {"side_by_side": len(everyone) * steps})
    chosen = choose_bits(measured, sampler)
    network.use(chosen)
    noise, unseen = Moments.at(measured, chosen), Moments.at(held_out, chosen)
    correction = noise.correction(settings)
    return Outcome(
        {
            "loss": losses,
            "samples": dict(cost),
            "noise_to_signal": {f"a{bits}": moments.noise_to_signal().tolist() for bits, moments in measured.items()},
            "statistics": statistics(noise, correction, sampler) | {"activation_bits": chosen},
            "held_out": {"error": unseen.error().tolist(), "corrected": unseen.error(correction).tolist()},
        },
        correction,
    )


def choose_bits(measured: Mapping[int, Moments], sampler: Sampler) -> list[int]:
    """The activation bits of each sampling step, from the moments at each bit-width: the fewest with less noise to the
    prediction than the step's input has noise to signal; or the most."""
    noise = {bits: moments.noise_to_signal().tolist() for bits, moments in measured.items()}
    return [
        min((bits for bits in noise if noise[bits][step] < sampler.noise_to_signal(step)), default=max(noise))
        for step in range(sampler.steps)
    ]


def paper_policy(bits: Bits, places: Places) -> Policy:
    """Shortcuts, downsampling and attention products stay in full precision; the layers at the edges have 8 bits."""
    full = ((Role.SHORTCUT, FULL), (Role.DOWNSAMPLE, FULL))
    eight = ((places.time_mlp[0], EIGHT), (Role.FIRST, EIGHT), (Role.LAST, EIGHT))
    return Policy("paper", overrides=(*full, *eight), attention=False)


def lower_bits(settings: PtqdSettings, activation_bits: int) -> tuple[int, ...]:
    """The bit-widths of ``step_bits`` that are below the run's, from many to few."""
    return tuple(sorted({bits for bits in settings.step_bits if bits < activation_bits}, reverse=True))


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

    def correction(self, settings: PtqdSettings) -> Correction:
        """The tables of the corrected sampler."""
        k = self.slope()
        noise, bias = self.means()
        if settings.centred_bias:
            bias = bias - k.clamp(min=0).unsqueeze(1) * noise
        return Correction(k.float(), bias.float(), self.deviation().float(), settings.direction)

    def _spread(self, ab: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Covariance from sums over everything, times the squared number of values."""
        return self.sums[0, 0].numel() * self.pixels * ab - a * b


@torch.no_grad()
def measure(network: QuantizedNetwork, calibration: Calibration, seed: int, trajectories: range) -> Moments:
    """ε and Δ on full-precision trajectories, which are drawn from noise of their own."""
    sampler = calibration.sampler
    batches, outputs = [], denoisers.Outputs(network, replayed=True)
    with network.frozen():
        for batch in tqdm(torch.tensor(trajectories).split(_BATCH), desc="measure noise", unit="batch", mininterval=5):
            moments: list[Moments] = []
            noise = SampleNoise("correction", seed, batch.tolist(), calibration.x.shape[2:])
            predict = denoisers.predictor(outputs, calibration.guidance(batch.tolist()))
            walk = sampler.walk(noise, calibration.x.device)
            for call in sampler.calls():
                with network.quantizing(weights=False, activations=False):
                    full = predict(walk.x, call)
                if len(moments) == call.step:  # one entry a step, also where PLMS calls twice
                    moments.append(Moments.of(full, predict(walk.x, call) - full))
                walk.step(call, full)
            batches.append(torch.cat([each.sums for each in moments], 1).cpu())
    return Moments(torch.cat(batches, 2), calibration.x[0, 0, 0].numel())


def statistics(moments: Moments, correction: Correction, sampler: Sampler) -> dict[str, list[Any]]:
    """What was found at each sampling step, noisiest first, and what becomes of the sampler's own noise."""
    updates = [sampler.update(step) for step in range(sampler.steps)]
    shrinks = [correction.shrink(step, update) for step, update in enumerate(updates)]
    return {
        "slope": moments.slope().tolist(),
        "correlation": moments.correlation().tolist(),
        "deviation": moments.deviation().tolist(),
        "sigma": [update.deviation for update in updates],
        "corrected_sigma": [update.deviation * shrink for update, shrink in zip(updates, shrinks, strict=True)],
        "saturated": [shrink == 0 for shrink in shrinks],
    }
