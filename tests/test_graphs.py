"""Replayed work: the same numbers as the plain loop, whatever is learned. What needs a GPU is marked so."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from quest import graphs, methods
from quest.config.dataset import DatasetSettings
from quest.device import limited
from quest.diffusion import denoiser as denoisers
from quest.diffusion.denoiser import Outputs
from quest.graphs import Replayed
from quest.learning import finetuning, reconstruction, scales
from quest.learning.calibration import Calibration
from quest.learning.finetuning import calibrate_activations
from quest.learning.recomputing import Kept
from quest.methods import efficientdm, quest
from quest.noise import SampleNoise
from quest.quantization.network import QuantizedNetwork

Make = Callable[..., QuantizedNetwork]
MakeSettings = Callable[..., DatasetSettings]
GPU = torch.device("cuda")


def test_on_a_cpu_a_function_is_called_as_it_is() -> None:
    calls: list[Tensor] = []
    replayed = Replayed(lambda x: (calls.append(x), (x + 1,))[1])
    x = torch.ones(2)
    for _ in range(3):
        (y,) = replayed(x)
        assert y.tolist() == [2, 2]
    assert len(calls) == 3
    assert all(call is x for call in calls)


def test_nothing_is_collected_while_a_graph_is_recorded() -> None:
    """A graph in a cycle is destroyed when the collector finds it, which would end a recording."""
    with graphs._uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()


@pytest.fixture
def exact() -> Iterator[None]:
    """Kernels that give the same numbers each time."""
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = False


def on_gpu(network: QuantizedNetwork) -> QuantizedNetwork:
    network.example = tuple(each.to(GPU) for each in network.example)
    return network.to(GPU)


@contextmanager
def counting_recordings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    made: list[Any] = []
    record = Replayed._record

    def spy(self: Replayed, inputs: tuple[Tensor, ...]) -> Any:
        made.append(record(self, inputs))
        return made[-1]

    monkeypatch.setattr(Replayed, "_record", spy)
    yield made
    assert all(each is not None for each in made), "everything could be recorded"


@pytest.mark.gpu
def test_a_graph_is_replayed_for_each_shape_and_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    total, calls = torch.zeros((), device=GPU), []

    def add(x: Tensor) -> tuple[Tensor]:
        calls.append(x.shape)
        total.add_(x.sum())
        return (total.clone(),)

    replayed = Replayed(add)
    expected = 0.0
    kept = []
    for number in range(4):
        for size, variant in ((3, "a"), (5, "a"), (3, "b")):
            (found,) = replayed(torch.full((size,), float(number), device=GPU), variant=variant)
            expected += size * number
            kept.append((found, expected))
    assert all(found.item() == value for found, value in kept), "each result is a copy"
    assert len(calls) == 2 * 3, "called once as it is, recorded once"


@pytest.mark.gpu
def test_what_cannot_be_recorded_is_called_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    total = torch.zeros((), device=GPU)

    def asks(x: Tensor) -> tuple[Tensor]:
        total.add_(x.sum().item())
        return (total.clone(),)

    replayed = Replayed(asks)
    assert [replayed(torch.ones(2, device=GPU))[0].item() for _ in range(4)] == [2, 4, 6, 8]
    assert caplog.text.count("cannot be recorded as a CUDA graph") == 1
    assert torch.ones(3, device=GPU).sum().item() == 3, "the device is as before"


@pytest.mark.gpu
@pytest.mark.usefixtures("exact")
def test_learned_rounding(
    monkeypatch: pytest.MonkeyPatch, make_quantized: Make, calibration: Calibration, make_settings: MakeSettings
) -> None:
    settings = make_settings(reconstruction={"iterations": 50, "lr": 3e-2, "batch_size": 8}).reconstruction
    found = []
    with counting_recordings(monkeypatch) as made:
        for how in (graphs.plain, nullcontext):
            network = on_gpu(make_quantized("w3a8", calibrated=False))
            with how():
                losses = reconstruction.reconstruct(
                    network, calibration.to(GPU), settings, 0, reconstruction.Progress()
                )
            found.append(losses)
            assert bool(made) == (how is nullcontext)
    for name, plain in found[0].items():
        assert found[1][name] == pytest.approx(plain, rel=1e-3), name


@pytest.mark.gpu
@pytest.mark.usefixtures("exact")
def test_learned_scales(
    monkeypatch: pytest.MonkeyPatch, make_quantized: Make, calibration: Calibration, make_settings: MakeSettings
) -> None:
    settings = make_settings(methods={"q_diffusion": {"iterations": 40, "lr": 1e-3, "batch_size": 8}})
    found = []
    with counting_recordings(monkeypatch) as made:
        for how in (graphs.plain, nullcontext):
            network = on_gpu(make_quantized("w4a4", sets=2))
            with how():
                notes = scales.learn_scales(network, calibration.to(GPU), settings.methods.q_diffusion, 0)
            found.append(notes["loss"])
            assert bool(made) == (how is nullcontext)
    for name, plain in found[0].items():
        assert found[1][name] == pytest.approx(plain, rel=1e-3), name


@pytest.mark.gpu
@pytest.mark.usefixtures("exact")
def test_both_stages_of_quest(
    monkeypatch: pytest.MonkeyPatch, make_quantized: Make, calibration: Calibration, settings: DatasetSettings
) -> None:
    found = []
    method = settings.methods.quest.model_copy(update={"tla_epochs": 6, "cma_epochs": 6})
    with counting_recordings(monkeypatch) as made:
        for how in (graphs.plain, nullcontext):
            network = on_gpu(make_quantized("w4a4", sets=2))
            with how():
                found.append(quest.quantize(network, calibration.to(GPU), method, 0).notes["loss"])
            assert bool(made) == (how is nullcontext)
    for stage, epochs in found[0].items():
        for plain, replayed in zip(epochs, found[1][stage], strict=True):
            assert replayed == pytest.approx(plain, rel=1e-3), stage


@pytest.mark.gpu
@pytest.mark.usefixtures("exact")
def test_one_recording_serves_all_sets_of_scales(
    monkeypatch: pytest.MonkeyPatch, make_quantized: Make, calibration: Calibration, settings: DatasetSettings
) -> None:
    few = {"tla_samples": 4, "tla_batch_size": 4, "cma_samples": 4, "cma_batch_size": 4}  # batches are of one size
    method = settings.methods.quest.model_copy(update={"tla_epochs": 3, "cma_epochs": 3, **few})
    with counting_recordings(monkeypatch) as made:
        network, calibrated = (on_gpu(make_quantized("w4a4", sets=4)) for _ in range(2))
        quest.quantize(network, calibration.to(GPU), method, 0)
    assert len(made) == 2, "one of each stage"
    calibrate_activations(calibrated, calibration.to(GPU))
    before = calibrated.sites()
    moved = [(site.scale != before[name].scale).flatten(1).any(1) for name, site in network.sites().items()]
    assert torch.stack(moved).any(0).all(), "every set has learned"


@pytest.mark.gpu
@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("method", ["quest", "traq"])
def test_blocks_that_are_computed_again(
    monkeypatch: pytest.MonkeyPatch,
    make_quantized: Make,
    calibration: Calibration,
    make_settings: MakeSettings,
    method: str,
) -> None:
    """A backward pass that computes them is recorded like any other, single samples at steps of their own or not."""
    own = make_settings(methods={"quest": {"tla_epochs": 6, "cma_epochs": 6}, "traq": {"passes": 64}}).method(method)
    monkeypatch.setattr(Kept, "blocks_for", lambda kept, _room: list(kept.inside))
    found = []
    with counting_recordings(monkeypatch) as made:
        for how, limit in ((graphs.plain, math.inf), (nullcontext, 1.0)):
            network = on_gpu(make_quantized("w4a4", sets=4))
            with how(), limited(limit):
                found.append(methods.get(method).quantize(network, calibration.to(GPU), own, 0).notes["loss"])
            assert bool(made) == (how is nullcontext)
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=0)


@pytest.mark.gpu
@pytest.mark.usefixtures("exact")
def test_trajectories_of_efficientdm(
    monkeypatch: pytest.MonkeyPatch, make_quantized: Make, calibration: Calibration, settings: DatasetSettings
) -> None:
    found = []
    method = settings.methods.efficientdm.model_copy(update={"trajectories": 6, "batch_size": 4})
    with counting_recordings(monkeypatch) as made:
        for how in (graphs.plain, nullcontext):
            network = on_gpu(make_quantized("w4a4", sets=4, calibrated=False))
            with how():
                found.append(efficientdm.quantize(network, calibration.to(GPU), method, 0).notes["loss"])
            assert bool(made) == (how is nullcontext)
    assert found[1]["trajectories"] == pytest.approx(found[0]["trajectories"], rel=1e-3)
    assert found[1]["after"] == pytest.approx(found[0]["after"], rel=1e-3)


@pytest.mark.gpu
@pytest.mark.usefixtures("exact")
def test_sampling(monkeypatch: pytest.MonkeyPatch, make_quantized: Make, calibration: Calibration) -> None:
    """One graph for all sampling steps: their scales are looked up on the device."""
    network = on_gpu(make_quantized("w4a4", sets=2))
    noise = [SampleNoise("test", 0, range(3), calibration.x.shape[2:]) for _ in range(2)]
    with counting_recordings(monkeypatch) as made, torch.inference_mode():
        plain, replayed = (
            list(calibration.sampler.trajectory(denoisers.predictor(Outputs(network, each)), own, GPU))
            for each, own in zip((False, True), noise, strict=True)
        )
        assert len(made) == 1
    assert all(torch.equal(*pair) for pair in zip(plain, replayed, strict=True))


@pytest.mark.gpu
def test_finetuning_with_batches_that_do_not_divide(make_quantized: Make, calibration: Calibration) -> None:
    network = on_gpu(make_quantized("w4a4", sets=2))
    data = calibration.to(GPU)
    layers = network.layers()
    stage = finetuning.Stage("cma", layers, list(network.sites().values()), 4, 7, 4, 1e-4, 1e-4)
    history = finetuning.finetune(network, data, stage, stage.record(network, data), 0)
    assert history[-1]["global"] < history[0]["global"]
