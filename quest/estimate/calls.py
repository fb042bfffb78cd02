"""What each kind of call does (`quest.estimate.work`), so that it can be timed: the library's own steps on noise.
Kinds that only one method has are in that method's file (`quest.estimate.methods`).

A CPU is timed by the seconds that the process computes for, so that other processes do not count; a GPU by the clock.
Speed does not depend on values, so scales and targets are whatever noise gives.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from quest import architectures, resident
from quest.bench import measuring
from quest.bench.memory import RandomFeatures
from quest.config.dataset import DatasetSettings
from quest.config.evaluation import EvaluationSettings
from quest.config.learning import ReconstructionSettings, ScaleLearningSettings
from quest.config.quantizer import QuantizerSettings
from quest.config.sampling import SamplerSettings
from quest.config.values import Bits
from quest.deploy.backends.integer import IntegerNetwork
from quest.device import limited
from quest.diffusion.samplers import Sampler
from quest.estimate import methods, networks, work
from quest.estimate.networks import Model
from quest.learning import finetuning, reconstruction
from quest.learning import scales as scale_learning
from quest.learning.calibration import Calibration
from quest.learning.reconstruction import Recorder
from quest.metrics import evaluation, reference
from quest.metrics.extractor import Classifier, ClassifierExtractor, Extractor, load_extractor
from quest.quantization.network import QuantizedNetwork
from quest.quantization.recipe import Recipe

BITS = Bits(4, 4)
"""Calls are timed at 4 bits, scales by channel; other bits differ by less than what is promised. Those of
integers have a scale for a whole tensor."""
_OF_INTEGERS: dict[str, Any] = {
    "activation_granularity": {"4": "per_tensor", "8": "per_tensor"},
    "weight_group": None,
    "split_shortcuts": False,
}
_UNITS = 8  # at most so many units are timed, spread over the network; the others take as long as these
_IN_FULL_PRECISION = (work.FORWARD, work.DECODE, work.TRAIN, work.BUILD, work.FEATURES, work.METRICS)
_KEPT = 2**40  # MiB: no cache is too large to be timed where it is


Recording = ReconstructionSettings | ScaleLearningSettings


class Took(NamedTuple):
    """seconds: of one call. bytes: the most memory that was in use meanwhile, beyond what was before."""

    seconds: float
    bytes: float


class Calls:
    """A dataset's networks, ready to be timed. model: of `quest.estimate.networks`, taken over and changed."""

    def __init__(self, settings: DatasetSettings, model: Model, device: torch.device):
        self.settings, self.device = settings, device
        self.model = networks.materialized(model, device)
        self._grids: QuantizedNetwork | None = None
        self._packed: IntegerNetwork | None = None
        self._extractor: Extractor | None = None

    def take(self, kind: str, batch: int) -> Took:
        """What a call of a kind takes."""
        if kind not in _IN_FULL_PRECISION:
            _ = self.quantized  # made before, so that it is no part of what the call takes
        on_cpu = self.device.type == "cpu"
        measuring.reset_peak(self.device)
        resident.begin_anew()
        before = resident.now() if on_cpu else torch.cuda.memory_allocated(self.device)
        of_a_method = methods.kinds().get(kind)
        with limited(math.inf):  # as it is where there is room
            seconds = getattr(self, f"_{kind}")(batch) if of_a_method is None else of_a_method(self, batch)
        peak = resident.peak() if on_cpu else measuring.peak_mib(self.device) * 2**20
        return Took(max(seconds, 0.0), max(peak - before, 0.0))

    # The network as it is

    def _forward(self, batch: int) -> float:
        inputs = self.model.inputs(batch, self.device)
        with torch.inference_mode():
            return self._repeated(lambda: architectures.predict(self.model.network, inputs))

    def _decode(self, batch: int) -> float:
        if self.model.decoder is None:
            return 0.0
        latents = self.model.inputs(batch, self.device).x
        with torch.inference_mode():
            return self._repeated(lambda: self.model.decoder.decode(latents))

    def _train(self, batch: int) -> float:
        network = copy.deepcopy(self.model.network).train().requires_grad_(True)
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        inputs = self.model.inputs(batch, self.device)

        def step() -> None:
            architectures.predict(network, inputs).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        return self._repeated(step)

    # On grids

    @property
    def quantized(self) -> QuantizedNetwork:
        """The network on its grids, scales of all activations chosen."""
        if self._grids is None:
            self._grids = self._on_grids(self.settings.quantizer)
            finetuning.calibrate_activations(self._grids, self.calibration(2))
        return self._grids

    def _build(self, _batch: int) -> float:
        return self._timed(lambda: self._on_grids(self.settings.quantizer))

    def _on_grids(self, quantizer: QuantizerSettings) -> QuantizedNetwork:
        network = copy.deepcopy(self.model.network)
        example = tuple(architectures.of(network).arguments(self.model.inputs(1, self.device)))
        recipe = Recipe(BITS, quantizer, 1, self.settings.sampler.steps, self.model.policy)
        return QuantizedNetwork(network, recipe, example)

    def _quantized(self, batch: int) -> float:
        network, inputs = self.quantized, self.model.inputs(batch, self.device)
        network.set_step(0)
        with torch.inference_mode(), network.frozen():
            return self._repeated(lambda: architectures.predict(network, inputs))

    def _integers(self, batch: int) -> float:
        if self._packed is None:
            grids = self._on_grids(self.settings.quantizer.model_copy(update=_OF_INTEGERS))
            finetuning.calibrate_activations(grids, self.calibration(2))
            self._packed = IntegerNetwork(grids, range(self.settings.sampler.steps))
        network, inputs = self._packed, self.model.inputs(batch, self.device)
        network.set_step(0)
        with torch.inference_mode():
            return self._repeated(lambda: architectures.predict(network, inputs))

    def _choose(self, batch: int) -> float:
        network, data = self.quantized, self.calibration(batch)
        return self._timed(lambda: finetuning.calibrate_activations(network, data))

    def _ranges(self, batch: int) -> float:
        network, data = self.quantized, self.calibration(batch).samples(batch)
        with torch.no_grad(), finetuning.running_ranges(network, 0.95):
            return self._repeated(lambda: finetuning.predict(network, data, torch.arange(batch)))

    # Unit by unit

    def _record(self, batch: int) -> float:
        with self.quantized.quantizing(weights=True, activations=False), self.quantized.frozen():
            return self._recorded(batch, self.settings.reconstruction, weights=True)

    def _record_full(self, batch: int) -> float:
        with self.quantized.frozen():
            return self._recorded(batch, self.settings.methods.q_diffusion, weights=False)  # type: ignore[attr-defined]

    def _recorded(self, batch: int, settings: Recording, *, weights: bool) -> float:
        """Seconds of all units: of the samples that memory has room for going on from the units before."""
        network, data = self.quantized, self.calibration(batch).samples(batch)
        units = reconstruction.units(network)
        recorder = Recorder(network, units, data, _KEPT, weights=weights)
        kept = min(1.0, settings.cache_mib * 2**20 // max(1, recorder.bytes_a_sample) / settings.samples)
        found = 0.0
        if kept > 0:
            found += kept * self._timed(lambda: [recorder.record(number) for number in range(len(units))])
        if kept < 1:
            from_start = self._of_units(
                lambda unit: self._timed(lambda: reconstruction.record(network, unit, data, _KEPT, weights=weights))
            )
            found += (1 - kept) * from_start
        return found

    def _rounding(self, batch: int) -> float:
        data = self.calibration(batch).samples(batch)
        settings = self.settings.reconstruction.model_copy(update={"batch_size": batch})
        with self.quantized.quantizing(weights=True, activations=False):

            def step(unit: Any) -> float:
                with self.quantized.frozen():
                    cache = reconstruction.record(self.quantized, unit, data, _KEPT, weights=True)

                def learn(steps: int) -> None:
                    own = settings.model_copy(update={"iterations": steps})
                    reconstruction.learn_unit(unit, cache, own, torch.Generator())

                return self.step(learn)

            return self._of_units(step)

    def _scales(self, batch: int) -> float:
        data, members = self.calibration(batch).samples(batch), [torch.arange(batch)]
        settings = self.settings.methods.q_diffusion.model_copy(update={"batch_size": batch})  # type: ignore[attr-defined]
        with self.quantized.frozen():

            def step(unit: Any) -> float:
                if not scale_learning.sites_of(unit):
                    return 0.0
                cache = reconstruction.record(self.quantized, unit, data, _KEPT, weights=False)

                def learn(steps: int) -> None:
                    own = settings.model_copy(update={"iterations": steps})
                    scale_learning.learn_unit(self.quantized, unit, cache, members, own, torch.Generator())

                return self.step(learn)

            return self._of_units(step)

    def _of_units(self, seconds: Callable[[Any], float]) -> float:
        """Seconds of all units, from those of some of them."""
        units = reconstruction.units(self.quantized)
        some = [units[int((i + 0.5) * len(units) / _UNITS)] for i in range(_UNITS)] if len(units) > _UNITS else units
        return sum(map(seconds, some)) * len(units) / len(some)

    # Metrics

    @property
    def extractor(self) -> Extractor:
        """The dataset's; random features where Inception's weights would be needed."""
        if self._extractor is None:
            file, channels = self.settings.extractor, self.settings.image_channels
            if file.is_file() and file.suffix != ".pth":
                self._extractor = load_extractor(file, self.device)
            elif self.settings.pretrain is not None:
                classifier = Classifier(channels, 10, self.settings.pretrain.classifier_width)
                self._extractor = ClassifierExtractor(classifier, "untrained", "0" * 64, self.device)
            else:
                self._extractor = RandomFeatures(self.device)
        return self._extractor

    def _features(self, batch: int) -> float:
        images = self._images(batch)
        return self._repeated(lambda: self.extractor(images))

    def _metrics(self, images: int) -> float:
        known = min(images, reference.MANIFOLD_IMAGES)
        real = reference.reduce([self._images(known)], known, self.extractor, "noise")
        block = min(self.settings.evaluation.kid_block_size, images, known)
        split = min(self.settings.evaluation.inception_split_size, images)
        settings = EvaluationSettings(images=images, kid_block_size=block, inception_split_size=split)
        statistics = evaluation.start(settings, images, self.extractor)
        evaluation.take_in(statistics, 0, self._images(images), self.extractor)
        return self._timed(lambda: evaluation.numbers(statistics, real, settings, self.device))

    def _images(self, images: int) -> torch.Tensor:
        size = 256 if isinstance(self._extractor, RandomFeatures) else self.settings.image_size
        return torch.randint(256, (images, self.settings.image_channels, size, size), dtype=torch.uint8)

    # Shared

    def calibration(self, samples: int, steps: int = 1) -> Calibration:
        """Noise in the place of sampling states, under random conditions; ``steps``: of the sampler."""
        return self.model.recorded(self.model.inputs(samples, self.device), self.sampler(steps))

    @staticmethod
    def sampler(steps: int) -> Sampler:
        """Of so many steps, which need not divide the model's."""
        scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)
        return Sampler(scheduler, SamplerSettings(steps=steps, timesteps=tuple(range(900, 900 - steps, -1))))

    def _repeated(self, call: Callable[[], Any]) -> float:
        """Seconds of a call: the second one's, or of the best of some where they are short."""
        if (first := self._timed(call)) > 5:
            return first
        best = self._timed(call)
        for _ in range(4 if best < 0.2 else 0):
            best = min(best, self._timed(call))
        return best

    def step(self, learn: Callable[[int], Any]) -> float:
        """Seconds of a step of ``learn(steps)``, without what it does once."""
        learn(1)
        once = self._timed(lambda: learn(1))
        return max(self._timed(lambda: learn(3)) - once, 0.0) / 2

    def _timed(self, call: Callable[[], Any]) -> float:
        if self.device.type != "cpu":
            return measuring.seconds(call, self.device)
        begun = time.process_time()
        call()
        return time.process_time() - begun
