"""The works whose growth is measured (`quest.bench.growth`): each made ready at a point, to be run as the stages do.

Networks have random weights and data are noise: neither speed nor memory depends on their values. The network is that
of digits, at any width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from quest.config.evaluation import EvaluationSettings
from quest.config.learning import ReconstructionSettings
from quest.config.methods.quest import QuestSettings
from quest.config.pretraining import UNetSettings
from quest.config.quantizer import QuantizerSettings
from quest.config.sampling import SamplerSettings
from quest.config.values import Bits
from quest.diffusion import sampling as drawing
from quest.diffusion.denoiser import Denoiser, Sampler
from quest.embedded.training.denoiser import build_unet
from quest.learning import finetuning as learning
from quest.learning import reconstruction
from quest.learning.calibration import Calibration
from quest.methods import quest
from quest.metrics import evaluation, reference
from quest.metrics.extractor import Classifier, ClassifierExtractor
from quest.quantization.granularity import PerAxis
from quest.quantization.grid import Grid
from quest.quantization.network import QuantizedNetwork
from quest.quantization.quantizers import WeightQuantizer
from quest.quantization.recipe import Recipe

_SIZE = 16  # of images, as digits' are
_KEPT = 2**20  # MiB: every cache is where it is fastest
_REFERENCE = 1_024  # images


class Point(NamedTuple):
    """batch: samples that go through at once. samples: of the whole work. iterations: optimizer steps, epochs or
    sampling steps. width: channels at the highest resolution. bits: of weights and activations."""

    batch: int
    samples: int
    iterations: int
    width: int
    bits: int


class Work(NamedTuple):
    """run: the work and `once`. once: the least of it, with all that is done whatever its size: not counted.
    parameters: that the work is done with."""

    run: Callable[[], Any]
    once: Callable[[], Any]
    parameters: int


def rounding(point: Point, device: torch.device) -> Work:
    """Learned rounding of the heaviest unit: ``iterations`` steps of ``batch``."""
    network = _on_grids(point, device)
    unit = max(reconstruction.units(network), key=lambda unit: _count(unit.layers.values()))
    with network.quantizing(weights=True, activations=False):
        cache = reconstruction.record(network, unit, _noise(point, device).samples(point.samples), _KEPT, weights=True)

    def learn(iterations: int) -> None:
        settings = ReconstructionSettings(iterations=iterations, batch_size=point.batch)
        with network.quantizing(weights=True, activations=False):
            reconstruction.learn_unit(unit, cache, settings, torch.Generator().manual_seed(0))

    return Work(lambda: learn(point.iterations + 1), lambda: learn(1), _count(unit.layers.values()))


def recording(point: Point, device: torch.device) -> Work:
    """Inputs and targets of every unit, one after another, of ``samples``."""
    network, data = _on_grids(point, device), _noise(point, device)
    units = reconstruction.units(network)

    def record(samples: int) -> None:
        recorder = reconstruction.Recorder(network, units, data.samples(samples), _KEPT, weights=True)
        for number in range(len(units)):
            recorder.record(number)

    return Work(lambda: record(point.samples), lambda: None, _parameters(network))


def finetuning(point: Point, device: torch.device) -> Work:
    """QuEST's second stage: ``iterations`` epochs over ``samples`` in steps of ``batch``."""
    network, data = _on_grids(point, device), _noise(point, device)
    settings = QuestSettings(cma_samples=point.samples, cma_batch_size=point.batch, sets=1)
    learning.calibrate_activations(network, data)
    stage = quest.attention_alignment(network, settings)
    targets = stage.record(network, data)

    def learn(epochs: int) -> None:
        learning.finetune(network, data, replace(stage, epochs=epochs), targets, 0)

    return Work(lambda: learn(point.iterations + 1), lambda: learn(1), _parameters(network))


def sampling(point: Point, device: torch.device) -> Work:
    """``samples`` images by the fake-quantized network, ``batch`` at once, in ``iterations`` steps."""
    network = _on_grids(point, device)
    learning.calibrate_activations(network, _noise(point._replace(samples=point.batch), device))
    model = Denoiser(network.network, DDIMScheduler())
    settings = _steps(point)

    def draw(images: int) -> None:
        with network.frozen():
            drawing.sample(model, network, settings, 0, range(images), None, point.batch, device)

    return Work(lambda: draw(point.samples + point.batch), lambda: draw(point.batch), _parameters(network))


def weight_search(point: Point, device: torch.device) -> Work:
    """The weight scales of every layer, by 80 shrinks of each channel's range."""
    weights = [layer.weight for layer in _on_grids(point, device).layers().values()]

    def search() -> None:
        for weight in weights:
            WeightQuantizer(weight, Grid(point.bits), PerAxis(0), "mse")

    return Work(search, lambda: None, sum(map(Tensor.numel, weights)))


def activation_search(point: Point, device: torch.device) -> Work:
    """The activation scales of every place, on ``samples`` that go through at once."""
    network, data = _on_grids(point, device), _noise(point, device)
    return Work(lambda: learning.calibrate_activations(network, data), lambda: None, _parameters(network))


def features(point: Point, device: torch.device) -> Work:
    """Features of ``samples`` images by an embedded extractor of 2 ``width``, ``batch`` at once."""
    classifier, images = _classifier(point), _images(point.samples)
    extractor = ClassifierExtractor(classifier, "untrained", "0" * 64, device)
    return Work(lambda: extractor(images, point.batch), lambda: None, _parameters(classifier))


def metrics(point: Point, device: torch.device) -> Work:
    """All metrics of ``samples`` images whose features are there, beside a reference of 1,024."""
    extractor = ClassifierExtractor(_classifier(point), "untrained", "0" * 64, device)
    real = reference.reduce([_images(_REFERENCE)], _REFERENCE, extractor, "noise")
    settings = EvaluationSettings(images=point.samples, inception_split_size=50, kid_block_size=50)
    seen = evaluation.start(settings, point.samples, extractor)
    evaluation.take_in(seen, 0, _images(point.samples), extractor)
    return Work(lambda: evaluation.numbers(seen, real, settings, device), lambda: None, real.pooled.shape[1])


WORKS: dict[str, Callable[[Point, torch.device], Work]] = {
    "weight search": weight_search,
    "activation search": activation_search,
    "learned rounding": rounding,
    "recording": recording,
    "QuEST finetuning": finetuning,
    "sampling": sampling,
    "features": features,
    "metrics": metrics,
}


def _on_grids(point: Point, device: torch.device) -> QuantizedNetwork:
    """The network on its grids, weight scales by the quick search."""
    width = point.width
    own = UNetSettings(
        channels=(width, 2 * width, 3 * width), layers_per_block=1, attention=(False, True, True), attention_head_dim=16
    )
    torch.manual_seed(0)
    network = build_unet(own, 1, _SIZE).to(device)
    x, timesteps = torch.randn(1, 1, _SIZE, _SIZE, device=device), torch.zeros(1, dtype=torch.long, device=device)
    recipe = Recipe(Bits(point.bits, point.bits), QuantizerSettings(weight_search="max"), 1, point.iterations)
    quantized = QuantizedNetwork(network, recipe, (x, timesteps))
    quantized.set_step(0)
    return quantized


def _noise(point: Point, device: torch.device) -> Calibration:
    """Noise in the place of sampling states, all at the first step."""
    x = torch.randn(1, point.samples, 1, _SIZE, _SIZE, generator=torch.Generator().manual_seed(0))
    return Calibration(x.to(device), [0], Sampler(DDIMScheduler(), _steps(point)))


def _steps(point: Point) -> SamplerSettings:
    """As many sampling steps as iterations, which need not divide the model's."""
    return SamplerSettings(steps=point.iterations, timesteps=tuple(range(900, 900 - point.iterations, -1)))


def _classifier(point: Point) -> Classifier:
    torch.manual_seed(0)
    return Classifier(1, 10, 2 * point.width)


def _images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(256, (count, 1, _SIZE, _SIZE), generator=generator, dtype=torch.uint8)


def _count(layers: Any) -> int:
    return sum(layer.weight.numel() for layer in layers)


def _parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
