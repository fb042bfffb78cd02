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
from collections.abc import Mapping
from typing import Any

from quest.architectures import Places
from quest.config.methods.ptqd import PtqdSettings
from quest.config.values import Bits
from quest.diffusion.correction import Correction
from quest.diffusion.samplers import Sampler
from quest.learning.calibration import Calibration
from quest.learning.moments import Moments, measure
from quest.learning.progress import NOT_KEPT, Progress
from quest.learning.scales import calibrate_and_learn
from quest.methods import Outcome
from quest.quantization.network import QuantizedNetwork
from quest.quantization.policy import EIGHT, FULL, Policy
from quest.quantization.roles import Role


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
    corrected = correction(noise, settings)
    return Outcome(
        {
            "loss": losses,
            "samples": dict(cost),
            "noise_to_signal": {f"a{bits}": moments.noise_to_signal().tolist() for bits, moments in measured.items()},
            "statistics": statistics(noise, corrected, sampler) | {"activation_bits": chosen},
            "held_out": {"error": unseen.error().tolist(), "corrected": unseen.error(corrected).tolist()},
        },
        corrected,
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


def correction(moments: Moments, settings: PtqdSettings) -> Correction:
    """The tables of the corrected sampler."""
    k = moments.slope()
    noise, bias = moments.means()
    if settings.centred_bias:
        bias = bias - k.clamp(min=0).unsqueeze(1) * noise
    return Correction(k.float(), bias.float(), moments.deviation().float(), settings.direction)


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
