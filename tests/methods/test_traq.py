"""TRAQ: what it trains, on which states, and that what it minimises falls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from quest import methods
from quest.config.dataset import DatasetSettings
from quest.config.methods.traq import TraqSettings
from quest.config.values import Bits
from quest.deploy import start
from quest.diffusion import denoiser as denoisers
from quest.diffusion.denoiser import Denoiser, Outputs
from quest.learning import trajectories
from quest.learning.calibration import Calibration
from quest.methods import traq
from quest.quantization.granularity import Multiples
from quest.quantization.network import QuantizedNetwork
from quest.quantization.quantizers import ActivationQuantizer
from quest.quantization.rounding import Nearest

Make = Callable[..., QuantizedNetwork]
SETTINGS = TraqSettings(sets=4, passes=80, batch_size=4, draws=2, trajectories=4)


def made(denoiser: Denoiser, settings: DatasetSettings, bits: str = "w4a4") -> QuantizedNetwork:
    """The network that the method starts from, its weights rounded to nearest."""
    recipe = start.recipe_of(settings, denoiser, "traq", Bits.parse(bits))
    return QuantizedNetwork(denoiser.copy("cpu").network, recipe, denoiser.example())


def error(network: QuantizedNetwork, teacher: torch.nn.Module, data: Calibration) -> float:
    """Mean squared error of the predicted noise over states."""
    full, low = denoisers.predictor(teacher), denoisers.predictor(network)
    with torch.no_grad():
        found = [
            (low(data.x[step], call) - full(data.x[step], call)).square().mean()
            for step, call in enumerate(data.sampler.calls())
        ]
    return torch.stack(found).mean().item()


def test_a_tensor_has_one_scale_a_step_and_a_channel_a_multiple_of_it(
    denoiser: Denoiser, settings: DatasetSettings
) -> None:
    network = made(denoiser, settings)
    sites = [site for site in network.sites().values() if site.grid.bits == 4]
    assert sites
    for site in sites:
        assert isinstance(site.granularity, Multiples)
        assert site.scale.numel() == 4
        assert site.multiple is not None
        assert site.multiple.numel() == site.zero_point.numel() > 4


def test_where_nothing_is_to_be_trained_no_weight_moves(
    denoiser: Denoiser, settings: DatasetSettings, calibration: Calibration
) -> None:
    network = made(denoiser, settings, "w4a8")
    before = {name: layer.weight.clone() for name, layer in network.layers().items()}
    outcome = traq.quantize(network, calibration, SETTINGS.model_copy(update={"passes": 0}), 0)
    assert all(torch.equal(layer.weight, before[name]) for name, layer in network.layers().items())
    assert outcome == methods.Outcome({"passes": {}})


def test_weights_start_on_their_codes_unless_told_otherwise(
    denoiser: Denoiser, settings: DatasetSettings, calibration: Calibration
) -> None:
    """A rate of almost nothing moves a folded weight off its code by almost nothing; others are anywhere."""
    away = {}
    for folded in (True, False):
        network = made(denoiser, settings)
        update = {"passes": 4, "draws": 0, "influence": 0.0, "folded": folded, "weight_lr": {"8": 1e-9, "4": 1e-9}}
        traq.quantize(network, calibration, SETTINGS.model_copy(update=update), 0)
        with torch.no_grad():
            pairs = [(layer.quantized_weight(), layer.weight) for layer in network.layers().values()]
        away[folded] = max(float((coded - weight).abs().max() / weight.abs().max()) for coded, weight in pairs)
    assert away[True] < 1e-4
    assert away[False] > 1e-2


def test_the_error_falls_on_states_that_it_has_not_seen(
    denoiser: Denoiser, settings: DatasetSettings, calibration: Calibration
) -> None:
    network = made(denoiser, settings, "w4a8")
    traq.calibrate_activations(network, calibration)
    held_out = trajectories.states(Outputs(denoiser.network), calibration, 99, 8)
    before = error(network, denoiser.network, held_out)
    update = {"passes": 400, "weight_lr": {"8": 2e-2}, "bias_lr": 5e-3, "influence": 0.0, "trajectories": 8}
    outcome = methods.get("traq").quantize(network, calibration, SETTINGS.model_copy(update=update), 0)
    assert error(network, denoiser.network, held_out) < 0.85 * before  # 0.62 to 0.75, by seed and processor
    assert outcome.notes["optimizer_steps"] == {"traq": 100}


def test_a_sample_that_has_lost_its_way_does_not_decide_the_step() -> None:
    """Of squared errors 1, 1, 1 and 1,000 the last counts 4·log(1 + 250), and its gradient is 1/251."""
    errors = torch.tensor([1.0, 1.0, 1.0, 1000.0], requires_grad=True)
    found = traq.cauchy(errors, 4.0)
    assert found[3].item() == pytest.approx(22.1, abs=0.05)
    found.sum().backward()
    assert errors.grad is not None
    assert errors.grad[3].item() == pytest.approx(1 / 251, rel=1e-4)
    assert errors.grad[0].item() == pytest.approx(0.8, rel=1e-6)
    assert torch.equal(traq.cauchy(errors, 0.0), errors)
    assert torch.equal(traq.cauchy(torch.zeros(3), 4.0), torch.zeros(3))


def test_passes_of_drawn_states_are_counted(
    denoiser: Denoiser, settings: DatasetSettings, calibration: Calibration
) -> None:
    """Two draws of four trajectories, four steps each, by the network and its teacher."""
    outcome = methods.get("traq").quantize(made(denoiser, settings), calibration, SETTINGS, 0)
    assert outcome.notes["passes"] == {"trained": 80, "drawn": 2 * 2 * 4 * 4}


def test_states_are_not_drawn_for_no_step(
    denoiser: Denoiser, settings: DatasetSettings, calibration: Calibration
) -> None:
    """Three draws, and passes for two steps: two are drawn, and each has a step."""
    few = SETTINGS.model_copy(update={"draws": 3, "passes": 8})
    outcome = traq.quantize(made(denoiser, settings), calibration, few, 0)
    assert len(outcome.notes["loss"]) == outcome.notes["optimizer_steps"]["traq"] == 2
    assert outcome.notes["passes"]["drawn"] == 2 * 2 * 4 * 4


def test_everything_but_the_grids_of_weights_is_trained(
    denoiser: Denoiser, settings: DatasetSettings, calibration: Calibration
) -> None:
    network = made(denoiser, settings)
    traq.calibrate_activations(network, calibration)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    traq.quantize(network, calibration, SETTINGS, 0)
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    still = set(before) - moved
    still -= {"step.widths"}
    assert all(
        ".weight_quantizer." in name or name.endswith(("zero_point", "multiple", "calibrated")) for name in still
    )
    assert not [name for name in moved if ".weight_quantizer." in name]
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_weights_are_on_their_grids_and_rounded_to_nearest(
    denoiser: Denoiser, settings: DatasetSettings, calibration: Calibration
) -> None:
    network = made(denoiser, settings)
    traq.quantize(network, calibration, SETTINGS, 0)
    assert all(isinstance(q.rounding, Nearest) for layer in network.layers().values() for q, _ in layer.weight_parts())
    assert network.account()["activation_granularity"] == "multiples"  # in which the levels of everything are counted


def test_samples_of_a_batch_have_their_own_steps(
    denoiser: Denoiser, settings: DatasetSettings, calibration: Calibration
) -> None:
    network = made(denoiser, settings)
    traq.calibrate_activations(network, calibration)
    data = calibration.samples(2)
    batch = torch.tensor([0, 3, 5, 6])
    network.set_step(0)
    with torch.no_grad(), network.step.each(data.steps[batch]):
        together = network(*_told(data, batch)).sample
    for row, sample in enumerate(batch.tolist()):
        network.set_step(int(data.steps[sample]))
        with torch.no_grad():
            alone = network(*_told(data, torch.tensor([sample]))).sample
        assert torch.allclose(together[row : row + 1], alone, atol=1e-5)


def _told(data, batch):
    return data.x[batch], data.timesteps[batch]


def test_states_are_those_that_the_network_samples_through(make_quantized: Make, calibration: Calibration) -> None:
    network = make_quantized()
    found = trajectories.states(Outputs(network), calibration, 3, 5)
    assert found.x.shape[:2] == (calibration.sampler.steps, 5)
    call = calibration.sampler.calls()[0]
    with torch.no_grad():
        after = calibration.sampler.after(found.x[0], denoisers.predictor(network)(found.x[0], call), 0, 0.0, None)
    assert torch.allclose(after, found.x[1], atol=1e-5)
    assert not torch.equal(found.x, trajectories.states(Outputs(network), calibration, 4, 5).x)


def test_influence_is_what_an_error_does_to_the_sample(
    make_quantized: Make, calibration: Calibration, denoiser: Denoiser
) -> None:
    """The last step's is the square of what the sampler multiplies the noise by."""
    found = trajectories.influence(make_quantized(), calibration, 0)
    steps = calibration.sampler.steps
    assert found.shape == (steps,)
    expected = calibration.sampler.update(steps - 1).noise ** 2
    assert found[-1].item() == pytest.approx(expected, rel=1e-3)


def test_it_goes_on_with_calibration_data_alone(
    denoiser: Denoiser, settings: DatasetSettings, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_args: object) -> Calibration:
        raise AssertionError("states were drawn")

    monkeypatch.setattr(trajectories, "states", never)
    network = made(denoiser, settings)
    outcome = traq.quantize(network, calibration, SETTINGS.model_copy(update={"draws": 0, "influence": 0.0}), 0)
    assert outcome.notes["step_weights"] == [1.0] * calibration.sampler.steps
    assert len(outcome.notes["loss"]) == 1
    sites: list[ActivationQuantizer] = list(network.sites().values())
    assert all(bool(torch.isfinite(site.scale).all()) for site in sites)


def test_a_graph_of_other_noise_is_another_result(
    denoiser: Denoiser, settings: DatasetSettings, calibration: Calibration
) -> None:
    """The seed reaches what is drawn: other states, other weights."""
    results = []
    for seed in (0, 0, 1):
        network = made(denoiser, settings)
        traq.quantize(network, replace(calibration), SETTINGS, seed)
        results.append(torch.cat([layer.weight.flatten() for layer in network.layers().values()]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
