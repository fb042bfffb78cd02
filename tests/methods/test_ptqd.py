"""PTQD: statistics recover a known noise, and the corrected sampler undoes it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from quest import architectures
from quest.config.dataset import DatasetSettings
from quest.config.methods.ptqd import PtqdSettings
from quest.config.sampling import SamplerSettings
from quest.config.values import Bits
from quest.deploy.start import recipe as make_recipe
from quest.diffusion import denoiser as denoisers
from quest.diffusion.correction import Correction
from quest.diffusion.denoiser import Denoiser
from quest.learning import moments as moments_module
from quest.learning.calibration import Calibration
from quest.learning.moments import Moments, measure
from quest.methods import ptqd
from quest.noise import SampleNoise
from quest.quantization.network import QuantizedNetwork
from quest.quantization.policy import Policy
from quest.quantization.roles import Role

Make = Callable[..., QuantizedNetwork]
CPU = torch.device("cpu")
SLOPE, MEAN, DEVIATION = 0.2, (0.05, -0.1, 0.0), 0.1


@pytest.fixture
def own(settings: DatasetSettings) -> PtqdSettings:
    """The tiny protocol's."""
    return settings.methods.ptqd


def noise_and_error(seed: int, samples: int = 200, slope: float = SLOPE) -> tuple[Tensor, Tensor]:
    """ε ~ N(0.1, 1) and Δ = k·ε + μ + s·n, both (samples, 3, 16, 16)."""
    generator = torch.Generator().manual_seed(seed)
    noise, rest = torch.randn(2, samples, 3, 16, 16, generator=generator)
    noise = noise + 0.1
    return noise, slope * noise + torch.tensor(MEAN).view(3, 1, 1) + DEVIATION * rest


@pytest.mark.parametrize("slope", [SLOPE, -SLOPE])
def test_estimators_are_what_they_are_defined_as(slope: float) -> None:
    """Sums over pixels are enough: the same as from all values at once."""
    noise, error = noise_and_error(0, samples=20, slope=slope)
    moments = Moments.of(noise, error)
    e, d = noise.double(), error.double()
    system = torch.stack([e.flatten(), torch.ones_like(e.flatten())], 1)
    k = torch.linalg.lstsq(system, d.flatten().unsqueeze(1)).solution[0].item()
    assert moments.slope().item() == pytest.approx(k, rel=1e-8)
    correlation = torch.corrcoef(torch.stack([e.flatten(), d.flatten()]))[0, 1].item()
    assert moments.correlation().item() == pytest.approx(correlation, rel=1e-8)
    torch.testing.assert_close(moments.means()[1][0], d.mean((0, 2, 3)), rtol=1e-8, atol=1e-12)
    residual = d - max(k, 0) * e
    deviation = residual.flatten(1).std(dim=1).mean().item()
    assert moments.deviation().item() == pytest.approx(deviation, rel=1e-8)


def test_estimators_recover_a_known_noise() -> None:
    noise, error = noise_and_error(0)
    moments = Moments.of(noise, error)
    assert moments.slope().item() == pytest.approx(SLOPE, abs=0.01)
    torch.testing.assert_close(moments.means()[1][0], torch.tensor(MEAN).double() + SLOPE * 0.1, atol=2e-3, rtol=0)
    # Within a sample, the means of the channels differ.
    spread = math.sqrt(DEVIATION**2 + torch.tensor(MEAN).var(correction=0).item())
    assert moments.deviation().item() == pytest.approx(spread, rel=0.02)
    assert moments.correlation().item() == pytest.approx(SLOPE / math.hypot(SLOPE, spread), rel=0.02)


def test_bias_with_and_without_the_correlated_part(own: PtqdSettings) -> None:
    moments = Moments.of(*noise_and_error(0))
    raw = ptqd.correction(moments, own).bias[0]
    centred = ptqd.correction(moments, own.model_copy(update={"centred_bias": True})).bias[0]
    torch.testing.assert_close(raw, torch.tensor(MEAN) + SLOPE * 0.1, atol=2e-3, rtol=0)
    torch.testing.assert_close(centred, torch.tensor(MEAN), atol=3e-3, rtol=0)


@pytest.mark.parametrize("slope", [SLOPE, -SLOPE])
def test_held_out_error(own: PtqdSettings, slope: float) -> None:
    """As from the tensors themselves, and smaller than before; slope and bias each do their part where k > 0."""
    noise, error = noise_and_error(1, slope=slope)
    held_out = Moments.of(noise, error)
    correction = ptqd.correction(Moments.of(*noise_and_error(0, slope=slope)), own)
    nothing = torch.zeros(1)
    found = {
        "none": held_out.error().item(),
        "slope": held_out.error(replace(correction, bias=torch.zeros(1, 3))).item(),
        "bias": held_out.error(replace(correction, slope=nothing)).item(),
        "both": held_out.error(correction).item(),
    }
    corrected = correction.noise((noise + error).double(), 0) - noise
    assert found["none"] == pytest.approx(error.square().mean().item(), rel=1e-6)
    assert found["both"] == pytest.approx(corrected.square().mean().item(), rel=1e-5)
    assert found["both"] <= min(found.values())
    if slope > 0:
        assert found["both"] < min(found["slope"], found["bias"]) < max(found["slope"], found["bias"]) < found["none"]
        centred = ptqd.correction(Moments.of(*noise_and_error(0)), own.model_copy(update={"centred_bias": True}))
        assert held_out.error(centred).item() == pytest.approx((DEVIATION / (1 + SLOPE)) ** 2, rel=0.02)
    else:
        assert found["slope"] == found["none"]


def test_corrected_step_has_the_mean_and_the_variance_of_full_precision(denoiser: Denoiser) -> None:
    """With the original σ along e: c²·s_q² + σ'² = σ²."""
    slope, mean, deviation = 0.2, 0.05, 0.05
    sampler = denoiser.sampler(SamplerSettings(steps=4, eta=1.0))
    tables = torch.full((4,), slope), torch.full((4, 1), mean), torch.full((4,), deviation)
    correction = Correction(*tables, "original")
    update = sampler.update(0)
    assert 0 < correction.shrink(0, update) < 1
    spent = (update.noise * correction.residual(0)) ** 2
    assert spent + (update.deviation * correction.shrink(0, update)) ** 2 == pytest.approx(update.deviation**2)

    samples = range(400)
    torch.manual_seed(0)
    rest = torch.randn(len(samples), 1, 8, 8)
    x = SampleNoise("evaluation", 0, samples, denoiser.shape).draw()
    noise = x * 0.5 + 0.1  # of full precision: any function of the state
    quantized = (1 + slope) * noise + mean + deviation * rest
    found = {}
    for name, (predicted, given) in {
        "fp": (noise, None),
        "plain": (quantized, None),
        "ptqd": (quantized, correction),
    }.items():
        states = sampler.trajectory(
            lambda _x, _step, predicted=predicted: predicted,
            SampleNoise("evaluation", 0, samples, denoiser.shape),
            CPU,
            given,
        )
        next(states)
        found[name] = next(states) - (math.sqrt(alpha(sampler, 250) / alpha(sampler, 0)) * x + update.noise * noise)
    count = rest.numel()
    assert found["fp"].std().item() == pytest.approx(update.deviation, rel=0.02)
    assert abs(found["ptqd"].mean().item()) < 4 * update.deviation / math.sqrt(count)
    assert found["ptqd"].std().item() == pytest.approx(update.deviation, rel=0.02)
    assert found["plain"].std().item() > 1.1 * update.deviation


def alpha(sampler: denoisers.Sampler, earlier: int) -> float:
    """ᾱ at the first step, or so many timesteps before it."""
    return sampler._schedule.alphas_cumprod[int(sampler.timesteps[0]) - earlier].item()


def test_measured_on_the_full_precision_trajectory(
    monkeypatch: pytest.MonkeyPatch, make_quantized: Make, calibration: Calibration, denoiser: Denoiser
) -> None:
    network = make_quantized(sets=2)
    monkeypatch.setattr(moments_module, "_BATCH", 3)
    measured = measure(network, calibration, 0, range(2, 7))
    assert measured.sums.shape == (5, 4, 5, 1)
    noise = SampleNoise("correction", 0, range(2, 7), denoiser.shape)
    with torch.no_grad():
        states = list(calibration.sampler.trajectory(denoisers.predictor(denoiser.network), noise, CPU))
        expected = []
        for step in range(4):
            full, low = (
                denoisers.predictor(each)(states[step], calibration.sampler.calls()[step])
                for each in (denoiser.network, network)
            )
            expected.append(Moments.of(full, low - full).sums)
    torch.testing.assert_close(measured.sums, torch.cat(expected, 1), rtol=1e-3, atol=1e-3)
    assert measured.pixels == 64
    assert network.switches.weights
    assert network.switches.activations
    assert all(layer._frozen is None for layer in network.layers().values())


def test_quantize(make_quantized: Make, calibration: Calibration, own: PtqdSettings) -> None:
    outcomes = []
    for global_seed in range(2):
        torch.manual_seed(global_seed)
        outcomes.append(ptqd.quantize(make_quantized(calibrated=False, sets=1), calibration, own, 3))
    notes, correction = outcomes[0]
    assert notes == outcomes[1].notes
    assert correction is not None
    assert correction.slope.shape == correction.deviation.shape == (4,)
    assert correction.bias.shape == (4, 1)
    assert correction.direction == "reduced"
    found = notes["statistics"]
    assert all(len(values) == 4 for values in found.values())
    assert found["activation_bits"] == [4] * 4
    assert found["slope"] == pytest.approx(correction.slope.tolist(), rel=1e-6)
    assert found["sigma"] == found["corrected_sigma"] == [0] * 4
    assert found["saturated"] == [False] * 4
    assert notes["samples"]["side_by_side"] == 12 * 4
    assert "loss" in notes


def test_a_step_takes_the_fewest_bits_whose_noise_its_input_hides(denoiser: Denoiser) -> None:
    sampler = denoiser.sampler(SamplerSettings(steps=4))
    limits = [sampler.noise_to_signal(step) for step in range(4)]
    for step, limit in enumerate(limits):
        a = alpha(sampler, 250 * step)
        assert limit == pytest.approx((1 - a) / a, rel=1e-5)
    assert limits == sorted(limits, reverse=True), "early steps have more room"
    ones = torch.ones(2, 1, 2, 2)

    def of(*shares: float) -> Moments:
        """Moments whose noise is so large a share of the limit of each step."""
        each = [Moments.of(ones, ones * math.sqrt(s * limit)) for s, limit in zip(shares, limits, strict=True)]
        return Moments(torch.cat([moments.sums for moments in each], 1), 4)

    measured = {8: of(0.1, 0.1, 0.1, 1.5), 4: of(0.2, 0.9, 1.1, 2), 2: of(0.9, 1.1, 3, 9)}
    torch.testing.assert_close(measured[4].noise_to_signal()[1].item(), 0.9 * limits[1])
    chosen = ptqd.choose_bits(measured, sampler)
    assert chosen == [2, 4, 8, 8], "the most where none suffices"
    taken = Moments.at(measured, chosen)
    for step, bits in enumerate(chosen):
        assert torch.equal(taken.sums[:, step], measured[bits].sums[:, step])


def test_each_width_is_quantized_as_if_it_were_alone(
    make_quantized: Make,
    denoiser: Denoiser,
    calibration: Calibration,
    settings: DatasetSettings,
    own: PtqdSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Scales, noise and correction are those of the networks of one width."""
    alone, corrections = {}, {}
    for bits in (8, 4):
        alone[bits] = make_quantized(f"w4a{bits}", calibrated=False, sets=1)
        corrections[bits] = ptqd.quantize(alone[bits], calibration, own, 3).correction
    example = (torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.long))
    recipe = make_recipe(settings, Bits(4, 8), 1, lower=(4,))
    network = QuantizedNetwork(denoiser.network, recipe, example)
    monkeypatch.setattr(ptqd, "choose_bits", lambda *_: [4, 8, 8, 4])
    notes, correction = ptqd.quantize(network, calibration, own, 3)
    sites = network.sites()
    for width, bits in enumerate((8, 4)):
        for name, site in alone[bits].sites().items():
            assert torch.equal(sites[f"{name}.{width}"].scale, site.scale), name
    assert network.used() == notes["statistics"]["activation_bits"] == [4, 8, 8, 4]
    assert correction is not None
    for step, bits in enumerate(network.used()):
        for name in ("slope", "bias", "deviation"):
            torch.testing.assert_close(getattr(correction, name)[step], getattr(corrections[bits], name)[step])
    assert notes["samples"]["side_by_side"] == 2 * 12 * 4


def test_only_widths_below_the_runs_are_options(own: PtqdSettings) -> None:
    several = own.model_copy(update={"step_bits": (4, 6, 4, 8)})
    assert ptqd.lower_bits(several, 8) == (6, 4)
    assert ptqd.lower_bits(several, 4) == ptqd.lower_bits(own, 8) == ()


def test_saturated_steps_are_told(make_quantized: Make, calibration: Calibration, denoiser: Denoiser) -> None:
    moments = Moments(measure(make_quantized(sets=1), calibration, 0, range(2)).sums, 64)
    sampler = denoiser.sampler(SamplerSettings(steps=4, eta=1.0))
    correction = Correction(torch.zeros(4), torch.zeros(4, 1), torch.tensor([0.01, 0.01, 100.0, 0.01]))
    found = ptqd.statistics(moments, correction, sampler)
    assert found["saturated"] == [False, False, True, False]
    assert found["corrected_sigma"][2] == found["corrected_sigma"][3] == 0
    for step in (0, 1):
        assert 0 < found["corrected_sigma"][step] < found["sigma"][step]


def test_correction_helps_a_quantized_network(
    make_quantized: Make, calibration: Calibration, own: PtqdSettings
) -> None:
    """A network whose output is 10 % too large and shifted, beside its quantization noise."""
    network = make_quantized("w8a8", sets=1)
    network.layers()["conv_out"].register_forward_hook(
        lambda _m, _i, output: output * 1.1 + 0.05 if network.switches.activations else output
    )
    correction = ptqd.correction(measure(network, calibration, 0, range(8)), own)
    held_out = measure(network, calibration, 0, range(8, 12))
    left = held_out.error(correction) / held_out.error()
    # At the noisiest step, where one scale for all steps clips most, about half of the error is the grid's own.
    assert left[0] < 0.8
    assert bool((left[1:] < 0.3).all())
    torch.testing.assert_close(correction.slope[1:], torch.full((3,), 0.1), atol=0.02, rtol=0)


def test_what_the_paper_leaves_out(
    denoiser: Denoiser, make_settings: Callable[..., DatasetSettings], calibration: Calibration
) -> None:
    bits = Bits(4, 4)
    recipe = make_recipe(make_settings(), bits, 1, ptqd.paper_policy(bits, architectures.of(denoiser.network).places()))
    assert recipe.policy == Policy.from_plain(recipe.policy.plain())
    network = QuantizedNetwork(denoiser.network, recipe, (torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.long)))
    layers = network.layers()
    assert not any(layer.role in (Role.SHORTCUT, Role.DOWNSAMPLE) for layer in layers.values())
    assert not any(".processor." in name for name in network.sites()), "attention products"
    eight = {"time_embedding.linear_1", "conv_in", "conv_out"}
    for name, layer in layers.items():
        expected = 8 if name in eight else 4
        assert layer.weight_parts()[0][0].grid.bits == expected
        assert network.sites()[f"{name}.input_quantizer"].grid.bits == expected
    assert network.account()["full_precision_layers"] > 0
