"""diffusers' pipelines that draw by themselves: their own calls are the sampling, and what they tell a network is kept.

So encoders, guidance, schedulers and shapes are the pipeline's, whatever they are. Image i of a seed is drawn from its
own generator, whatever the batch.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from diffusers.utils.import_utils import is_bs4_available, is_ftfy_available
from torch import Tensor, nn
from tqdm import tqdm

from quest import architectures
from quest.architectures import Architecture, Inputs
from quest.artifacts import ArtifactError
from quest.diffusion.sampling import to_uint8
from quest.own.calls import Calls, told
from quest.quantization.roles import is_layer
from quest.sources.weights import in_one_line


@dataclass(frozen=True)
class Family:
    """A kind of pipeline. part: what of it denoises. takes: the argument of a call that says what to draw. call: what
    every call is told beside that."""

    part: Literal["unet", "transformer"]
    takes: Literal["prompt", "class_labels"]
    call: Mapping[str, Any] = field(default_factory=dict)

    @property
    def condition(self) -> Literal["text", "class"]:
        return "text" if self.takes == "prompt" else "class"


# Sides that the network was made for are no other ones after binning, and those of others are not in the bins. What
# cleans captions is not asked for where it is not there, which PixArt would say at every call.
_PIXART = {"use_resolution_binning": False, "clean_caption": is_bs4_available() and is_ftfy_available()}
FAMILIES = {
    "DiTPipeline": Family("transformer", "class_labels"),
    "QuestClassPipeline": Family("unet", "class_labels"),
    "PixArtAlphaPipeline": Family("transformer", "prompt", _PIXART),
    "PixArtSigmaPipeline": Family("transformer", "prompt", _PIXART),
    "StableDiffusion3Pipeline": Family("transformer", "prompt"),
    "FluxPipeline": Family("transformer", "prompt"),
    "StableDiffusionXLPipeline": Family("unet", "prompt"),
}
"""By the name of the pipeline's class."""


@dataclass(frozen=True)
class Asked:
    """How a pipeline is called; None is its own default. size: pixels of a side."""

    steps: int | None = None
    guidance_scale: float | None = None
    size: int | None = None


@dataclass(frozen=True)
class Rehearsal:
    """What one image showed. timesteps: that its scheduler goes through, each once. samples: of the network for one
    image, two where it is guided. inputs: of the first call. shape: (channels, H, W) of the image. uneven: layers that
    are called with other rows than one a sample, by name; what is cached by sample cannot hold them."""

    timesteps: list[float]
    samples: int
    inputs: Inputs
    shape: tuple[int, int, int]
    uneven: tuple[str, ...] = ()


class Pipeline:
    """A diffusers pipeline of a known family, ready to be called as ``asked`` says. It is taken over."""

    def __init__(self, pipeline: Any, asked: Asked):
        self.pipeline, self.asked = pipeline, asked
        self.family = FAMILIES[type(pipeline).__name__]
        self.pipeline.set_progress_bar_config(disable=True)
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False)

    @classmethod
    def open(cls, folder: Path, asked: Asked, device: torch.device) -> Pipeline:
        """The pipeline that was saved to ``folder``, in float32. Raises ArtifactError where it cannot be read."""
        from diffusers.pipelines.pipeline_utils import DiffusionPipeline

        try:
            with redirect_stderr(StringIO()):  # a bar of diffusers, over the parts of the pipeline
                pipeline: Any = DiffusionPipeline.from_pretrained(
                    folder, torch_dtype=torch.float32, local_files_only=True
                )
        except Exception as error:  # of many kinds: whatever the part of it that failed raises
            raise ArtifactError(f"{folder}: diffusers cannot read it: {in_one_line(error)}") from error
        return cls(pipeline.to(device), asked)

    @property
    def network(self) -> Any:
        """What denoises."""
        return getattr(self.pipeline, self.family.part)

    @property
    def classes(self) -> int:
        """How many a pipeline of classes knows."""
        config = self.network.config
        return config.num_class_embeds if self.family.part == "unet" else config.num_embeds_ada_norm

    def arguments(self) -> dict[str, Any]:
        """What each call is told beside what to draw and from which noise, defaults written out."""
        known = inspect.signature(type(self.pipeline).__call__).parameters
        given = {"num_inference_steps": self.asked.steps, "guidance_scale": self.asked.guidance_scale}
        given = {
            name: known[name].default if value is None else value for name, value in given.items() if name in known
        }
        if self.asked.size is not None:
            given |= dict.fromkeys(("height", "width"), self.asked.size)
        return given | dict(self.family.call)

    @torch.no_grad()
    def images(self, wanted: Sequence[Any], purpose: str, seed: int, indices: Sequence[int]) -> Tensor:
        """Images ``indices`` of ``seed``, each of its class or prompt in ``wanted``: (n, channels, H, W) uint8."""
        drawn = torch.from_numpy(self._call(wanted, purpose, seed, indices, "np")).permute(0, 3, 1, 2)
        return to_uint8(drawn * 2 - 1)

    def _call(self, wanted: Sequence[Any], purpose: str, seed: int, indices: Sequence[int], output: str) -> Any:
        generators = [torch.Generator().manual_seed(_seed(purpose, seed, index)) for index in indices]
        with torch.random.fork_rng():
            torch.manual_seed(_seed(purpose, seed, indices[0]))  # of schedulers that are given no generator
            drawn = self.pipeline(
                **{self.family.takes: list(wanted)}, generator=generators, output_type=output, **self.arguments()
            )
        return drawn.images

    @torch.no_grad()
    def rehearse(self, wanted: Any) -> Rehearsal:
        """Go once through the pipeline's own call, for one image, computing the network's first answer alone.

        Raises ArtifactError where the call fails, or where the network is told what could not be told again.
        """
        network = self.network
        own, found, answer = network.forward, [], []
        uneven: dict[str, None] = {}

        def forward(*args: Any, **named: Any) -> Any:
            inputs = told(network, args, named)
            found.append(inputs)
            if not answer:
                with _noting_rows(network, len(inputs.x), uneven):
                    answer.append(own(*args, **named))
                _check_told(network, own, inputs, answer[0])
            if isinstance(answer[0], tuple):
                return (torch.zeros_like(answer[0][0]),)
            return type(answer[0])(sample=torch.zeros_like(answer[0].sample))

        network.forward = forward
        try:
            image = self.images([wanted], "rehearsal", 0, [0])[0]
        except ArtifactError:
            raise
        except Exception as error:  # of many kinds: whatever the part of the pipeline that failed raises
            raise ArtifactError(
                f"{type(self.pipeline).__name__}: its own call with {self.arguments()} fails: {in_one_line(error)}"
            ) from error
        finally:
            del network.forward  # the class's own again
        times = list(dict.fromkeys(float(inputs.timesteps[0]) for inputs in found))
        channels, height, width = image.shape
        return Rehearsal(times, len(found[0].x), found[0], (channels, height, width), tuple(uneven))

    @torch.no_grad()
    def record(
        self, wanted: Sequence[Any], seed: int, steps: Sequence[int], times: Sequence[float], batch: int
    ) -> Calls:
        """Draw an image for each of ``wanted`` and keep what the network was told at the sampling steps ``steps``.

        times: of all sampling steps, as they were rehearsed. Raises ArtifactError where they come out otherwise, or
        what the network is told beside image and timestep changes on the way.
        """
        drawn = []
        output = "latent" if self.family.condition == "text" else "np"
        bar = tqdm(torch.arange(len(wanted)).split(batch), desc="calibrate", unit="batch", mininterval=5)
        for indices in (each.tolist() for each in bar):
            with _listening(self.network, set(steps)) as heard:
                self._call([wanted[index] for index in indices], "calibration", seed, indices, output)
            if heard.times != list(times):
                raise ArtifactError(
                    f"{type(self.pipeline).__name__}: went through the timesteps {heard.times}, but through "
                    f"{list(times)} before; expected a scheduler that always goes through the same"
                )
            drawn.append(heard.by_image(len(indices)))
        x = torch.cat([torch.stack(each.x) for each in drawn], 1)
        contexts, added = zip(*((each.context, each.added) for each in drawn), strict=True)
        sampler: Any = None
        return Calls(
            x=x,
            steps=list(steps),
            sampler=sampler,
            contexts=None if contexts[0] is None else torch.cat(contexts),
            times=torch.tensor(list(times)),
            added={name: torch.cat([each[name] for each in added]) for name in added[0]},
        )


@dataclass
class _Heard:
    """What a network was told in one call of its pipeline. x: of the steps that were asked for."""

    times: list[float] = field(default_factory=list)
    x: list[Tensor] = field(default_factory=list)
    context: Tensor | None = None
    added: dict[str, Tensor] = field(default_factory=dict)

    def by_image(self, images: int) -> _Heard:
        """The same with the samples of an image one after the other: a guided pipeline has all of one kind first."""

        def turned(tensor: Tensor) -> Tensor:
            return tensor.unflatten(0, (-1, images)).transpose(0, 1).flatten(0, 1).cpu()

        context = None if self.context is None else turned(self.context)
        return _Heard(
            self.times,
            [turned(x).float() for x in self.x],
            context,
            {name: turned(tensor) for name, tensor in self.added.items()},
        )


@contextmanager
def _listening(network: nn.Module, steps: set[int]) -> Iterator[_Heard]:
    """Within, what ``network`` is told at the first call of each sampling step in ``steps``."""
    heard = _Heard()

    def hear(_network: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        inputs = told(network, args, named)
        time, added = float(inputs.timesteps[0]), dict(inputs.added or {})
        if time in heard.times:  # a sampler may call a network twice at a timestep
            return
        if not heard.times:
            heard.context, heard.added = inputs.context, added
        elif not _equal(heard.context, inputs.context) or not all(
            _equal(heard.added.get(name), tensor) for name, tensor in added.items()
        ):
            raise ArtifactError("the pipeline tells its network something else at each step; expected one condition")
        if len(heard.times) in steps:
            heard.x.append(inputs.x.clone())
        heard.times.append(time)

    handle = network.register_forward_pre_hook(hear, with_kwargs=True)
    try:
        yield heard
    finally:
        handle.remove()


@contextmanager
def _noting_rows(network: nn.Module, samples: int, uneven: dict[str, None]) -> Iterator[None]:
    """Within, names of layers that are called with other rows than ``samples`` are put into ``uneven``."""

    def note(name: str) -> Callable[..., None]:
        def hook(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if len(inputs[0]) != samples:
                uneven[name] = None

        return hook

    layers = {name: module for name, module in network.named_modules() if is_layer(module)}
    handles = [layer.register_forward_pre_hook(note(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))


def _check_told(network: nn.Module, forward: Callable[..., Any], inputs: Inputs, answer: Any) -> None:
    """Raises ArtifactError unless the network, called as we call it, gives what it gave the pipeline."""
    architecture = architectures.of(network)
    expected = _predicted(architecture, answer)
    given = _predicted(architecture, forward(*architecture.arguments(inputs)))
    near = 1e-3 * float(expected.std())
    if given.shape != expected.shape or not torch.allclose(given, expected, rtol=1e-3, atol=near):
        raise ArtifactError(
            f"{type(network).__name__}: its pipeline tells it more than its context and "
            f"{', '.join(inputs.added or ()) or 'nothing else'}, which is all that can be told again here; expected "
            "square images, and no adapter and no control images"
        )


def _predicted(architecture: Architecture, answer: Any) -> Tensor:
    """What the scheduler goes by, of what a call gave, which is a tuple where no dict was asked for."""
    return architecture.prediction(SimpleNamespace(sample=answer[0]) if isinstance(answer, tuple) else answer)


def _seed(purpose: str, seed: int, index: int) -> int:
    """32 bits, all that torch's CPU generator uses."""
    return int.from_bytes(hashlib.sha256(f"{purpose}/{seed}/{index}".encode()).digest()[:4], "little")
