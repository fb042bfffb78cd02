"""The steps from a pipeline that draws by itself to its packed folder: its own calls are the calibration.

All of it but its network stays as it is. The library's own samplers, conditions and first stages have no part in this.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quest import architectures, artifacts
from quest.architectures import Inputs
from quest.artifacts import Manifest
from quest.config.dataset import DatasetSettings
from quest.config.method import Rounding
from quest.config.sampling import SamplerSettings
from quest.config.values import Bits
from quest.deploy import checkpoints, export, start
from quest.deploy.card import Use
from quest.deploy.quantized import QuantizedModel
from quest.diffusion.conditions import EVALUATION, choices, conditions, in_turn
from quest.diffusion.denoiser import Denoiser
from quest.diffusion.samplers import Sampler
from quest.estimate import networks
from quest.learning import reconstruction as reconstructions
from quest.learning.calibration import Calibration
from quest.own import calls, learning, trial
from quest.own.calls import Calls
from quest.own.card import Words
from quest.own.drawing import Asked, Pipeline
from quest.own.source import OwnPipeline
from quest.own.steps import TIMED, Steps, account_of
from quest.own.trial import Trial
from quest.own.work import PIPELINE, Work
from quest.quantization.network import QuantizedNetwork
from quest.quantization.policy import EVERYTHING, FULL, Policy
from quest.sources import pipelines


class AroundPipeline(Steps):
    """A pipeline that draws by itself: its calls are the calibration, and all of it but its network stays.

    file: its folder. It is to be `rehearse`d before anything else is asked of it.
    """

    def __init__(self, source: OwnPipeline, asked: Asked, work: Work, seed: int, device: torch.device):
        self._source, self._asked, self._work, self._seed, self._device = source, asked, work, seed, device
        self.file = _folder(source, work)
        self.sha256 = pipelines.checksum(self.file)
        self.drawn_by = str(source.scheduler)
        self._opened: Pipeline | None = None
        self._words: Words | None = None

    def rehearse(self, wanted: Any) -> None:
        """Draw once, to see what the network is told. wanted: a class or prompt.

        Raises ArtifactError for a pipeline whose own call fails, or tells its network what cannot be told again.
        """
        opened = self._pipeline()
        self._kind = type(opened.network)
        self._rehearsal = opened.rehearse(wanted)
        self._fit(opened.network)
        self.call = opened.arguments()
        guided = self._rehearsal.samples > 1
        self.sampler = SamplerSettings(
            steps=len(self._rehearsal.timesteps), guidance_scale=self.call["guidance_scale"] if guided else 1.0
        )
        channels, height, _ = self._rehearsal.shape
        self.images = channels, height
        components = opened.pipeline.components.items()
        self._others = [name for name, part in components if isinstance(part, nn.Module) and name != self._part]

    @property
    def _part(self) -> str:
        return self._source.family.part

    def estimated(self) -> networks.Model:
        opened, inputs = self._pipeline(), self._rehearsal.inputs
        context = (1, 1) if inputs.context is None or inputs.context.ndim < 3 else tuple(inputs.context.shape[1:])
        components = opened.pipeline.components
        decoder = components.get("vae") or components.get("vqvae")
        return _Told(opened.network, decoder, context, self._leaving(EVERYTHING), inputs)  # type: ignore[arg-type]

    def calibrate(self, settings: DatasetSettings, output: Path) -> None:
        count = settings.calibration.samples_per_step
        among, every = choices(settings.condition), settings.sampler.steps // settings.calibration.steps
        wanted = in_turn(among, "calibration", self._seed, range(count)) or []
        recorded = self._pipeline().record(
            wanted,
            self._seed,
            range(0, settings.sampler.steps, every),
            self._rehearsal.timesteps,
            min(count, settings.evaluation.batch_size),
        )
        manifest = Manifest(
            kind="calibration", seeds={"run": self._seed}, inputs=self._inputs, notes={"steps": recorded.steps}
        )
        artifacts.save_tensors(output, recorded.export(), manifest)
        self._opened = None  # from now on its network alone is needed

    def reconstruct(
        self, settings: DatasetSettings, weight_bits: int, learned: Rounding, calibration: Path, output: Path
    ) -> None:
        self._opened = None
        data = calls.load(calibration).to(self._device)
        shell, bits = self._shell(), Bits(weight_bits, 8)  # activations stay in full precision meanwhile
        policy = self._leaving(start.policy_of(learned.policy, shell, bits))
        network = QuantizedNetwork(shell.network, start.recipe(settings, bits, policy=policy), shell.example())
        learning.reconstruct(network, data, settings, learned.grouping, self._seed, self._made_of(calibration), output)

    def finetune(
        self, settings: DatasetSettings, method: str, bits: str, calibration: Path, rounding: Path | None, output: Path
    ) -> None:
        self._opened = None
        torch.manual_seed(self._seed)
        data, shell = calls.load(calibration).to(self._device), self._shell()
        recipe = start.recipe_of(settings, shell, method, Bits.parse(bits))
        recipe = replace(recipe, policy=self._leaving(recipe.policy))
        network = QuantizedNetwork(shell.network, recipe, shell.example())
        if rounding is not None:
            reconstructions.put(network, artifacts.load_tensors(rounding, "reconstruction").tensors)
        learning.finetune(network, data, settings, method, self._seed, self._made_of(calibration), output)

    def _made_of(self, calibration: Path) -> dict[str, str]:
        return self._inputs | {"calibration": artifacts.read_manifest(calibration, "calibration").sha256}

    def full_precision(self, settings: DatasetSettings) -> Tensor:
        evaluation = settings.evaluation
        name = f"full.{evaluation.images}x{evaluation.shards}"
        return trial.drawn(
            self._work, name, evaluation, self._seed, self.sha256, self._drawing(settings, self._pipeline)
        )

    def trial(self, settings: DatasetSettings, folder: Path, calibration: Path, checkpoint: Path) -> Trial:
        full = self.full_precision(settings)
        self._opened = None
        made = checkpoints.load(checkpoint, shell := self._shell())
        if self._words is None:  # or else it is a second try, in smaller batches
            times = self._rehearsal.timesteps
            described = export.write_around(folder, self.file, self._part, made, times)
            what = 'prompt="…"' if self._source.family.takes == "prompt" else "class_labels=[0, 1, 2, 3]"
            call = ", ".join([what, *(f"{name}={value!r}" for name, value in self.call.items())])
            words = f"{self.drawn_by} with {len(times)} steps"
            words += (
                f" and a guidance scale of {self.call['guidance_scale']:g}" if "guidance_scale" in self.call else ""
            )
            use = Use(call, words, times, [f"the part `{name}`" for name in self._others])
            self._words = Words(QuantizedModel(made, shell), described, account_of(checkpoint), use)
        del made, shell
        packed = Pipeline.open(folder, self._asked, self._device)
        made_of = artifacts.read_manifest(checkpoint, "checkpoint").sha256
        images = trial.drawn(
            self._work, "trial", settings.evaluation, self._seed, made_of, self._drawing(settings, lambda: packed)
        )
        data = calls.load(calibration).samples(TIMED).inputs(torch.arange(min(TIMED, settings.evaluation.batch_size)))
        speed = trial.speed(self._network(), packed.network, _on(data, self._device))
        return Trial(self._words, full, images, speed)

    @property
    def _inputs(self) -> dict[str, str]:
        return {"model": self.sha256}

    def _pipeline(self) -> Pipeline:
        self._opened = self._opened or Pipeline.open(self.file, self._asked, self._device)
        return self._opened

    def _network(self) -> Any:
        """The network alone, read anew."""
        read: Any = self._kind
        network = read.from_pretrained(self.file / self._part, torch_dtype=torch.float32, local_files_only=True)
        self._fit(network)
        return network.eval().requires_grad_(False).to(self._device)

    def _fit(self, network: Any) -> None:
        """Have the network's config say the size of what it is called with, where that is not what it was made for."""
        side = self._rehearsal.inputs.x.shape[-1]
        if architectures.of(network).shape[1:] != (side, side):
            network.register_to_config(sample_size=side)

    def _leaving(self, policy: Policy) -> Policy:
        """The policy, but for layers that are called with other rows than one a sample (PixArt-α's embedding of the
        image's size): few weights, which stay in full precision."""
        if not (uneven := tuple((name, FULL) for name in self._rehearsal.uneven)):
            return policy
        name = f"{policy.name}, without layers of several rows a sample"
        return replace(policy, name=name, overrides=uneven + policy.overrides)

    def _shell(self) -> Denoiser:
        scheduler: Any = None  # the pipeline's own, which is its own affair
        return Denoiser(self._network(), scheduler, sha256=self.sha256)

    def _drawing(self, settings: DatasetSettings, opened: Callable[[], Pipeline]) -> Callable[[range], Tensor]:
        """Draws images of the evaluation with what ``opened`` gives, which is asked only where one is drawn."""

        def draw(indices: range) -> Tensor:
            wanted = conditions(settings.condition, EVALUATION, self._seed, indices) or []
            return opened().images(wanted, EVALUATION, self._seed, indices)

        return draw


@dataclass(frozen=True)
class _Told(networks.Model):
    """A network that is told what its pipeline tells it. told: of one call."""

    told: Inputs = None  # type: ignore[assignment]  # a default, since `Model` has some

    def inputs(self, batch: int, device: torch.device | str) -> Inputs:
        def repeated(tensor: Tensor) -> Tensor:
            return tensor[:1].to(device).expand(batch, *tensor.shape[1:])

        told = self.told
        return Inputs(
            torch.randn(batch, *told.x.shape[1:], device=device),
            repeated(told.timesteps),
            None if told.context is None else repeated(told.context),
            {name: repeated(tensor) for name, tensor in (told.added or {}).items()},
        )

    def recorded(self, told: Inputs, sampler: Sampler) -> Calibration:
        return Calls(
            told.x.unsqueeze(0), [0], sampler, told.context, times=told.timesteps[:1].float(), added=told.added or {}
        )


def _on(inputs: Inputs, device: torch.device) -> Inputs:
    moved = [None if tensor is None else tensor.to(device) for tensor in inputs[:3]]
    added = {name: tensor.to(device) for name, tensor in (inputs.added or {}).items()}
    return Inputs(*moved, added)  # type: ignore[arg-type]


def _folder(source: OwnPipeline, work: Work) -> Path:
    """The folder of a pipeline's files: its own, or one in the work's folder."""
    if source.folder is not None:
        return source.folder
    folder = work.file(PIPELINE)
    shutil.rmtree(folder, ignore_errors=True)
    source.pipeline.save_pretrained(folder)
    return folder
