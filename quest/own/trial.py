"""What came out: the folder is loaded as its users will load it, draws the same seeds as full precision, is timed."""

from __future__ import annotations

import copy
import logging
import statistics
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quest import architectures, artifacts
from quest.architectures import Inputs
from quest.bench import measuring
from quest.config.evaluation import EvaluationSettings
from quest.deploy import kernels
from quest.deploy.packed.description import PARTS
from quest.diffusion.denoiser import Denoiser
from quest.diffusion.sampling import shard_indices
from quest.metrics import distances
from quest.metrics.measure import squared_errors
from quest.own.card import Words
from quest.own.work import Work

log = logging.getLogger(__name__)

_REPEATS = 5
_LONG = 5.0  # seconds of a call that is timed once


class Trial(NamedTuple):
    """What came out. full, images: (n, channels, H, W) uint8, of full precision and of the folder."""

    words: Words
    full: Tensor
    images: Tensor
    speed: dict[str, Any]


def loaded(folder: Path, device: torch.device) -> Any:
    """The packed network of a pipeline's folder, on a device."""
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    with redirect_stderr(StringIO()):  # a bar of diffusers, over the parts of the pipeline
        pipeline: Any = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    return next(getattr(pipeline, part) for part in PARTS if hasattr(pipeline, part)).to(device).eval()


def drawn(
    work: Work, name: str, evaluation: EvaluationSettings, seed: int, made_of: str, draw: Callable[[range], Tensor]
) -> Tensor:
    """Images (n, channels, H, W) uint8, by ``draw`` of each shard's indices; each shard is kept, under ``name``.

    made_of: what they are drawn with, so that shards of another are not taken for them.
    """
    shards = []
    for shard in range(evaluation.shards):
        file = work.file(f"{name}.{shard}.safetensors")
        indices = shard_indices(evaluation.images, shard, evaluation.shards)
        if (kept := _kept(file, made_of, len(indices))) is None:
            kept = draw(indices)
            manifest = artifacts.Manifest("samples", seeds={"run": seed}, inputs={"checkpoint": made_of})
            artifacts.save_tensors(file, {"images": kept}, manifest)
        shards.append(kept)
    return torch.cat(shards)


def _kept(file: Path, made_of: str, count: int) -> Tensor | None:
    if not file.is_file():
        return None
    artifact = artifacts.load_tensors(file, "samples")
    images = artifact.tensors["images"]
    return images if artifact.manifest.inputs["checkpoint"] == made_of and len(images) == count else None


def closeness(images: Tensor, full: Tensor) -> dict[str, Any]:
    """PSNR in dB, None for equal images, and MSE on the [0, 1] scale, over all images and of the worst one."""
    each = squared_errors(images, full)
    mse = sum(each) / len(each)
    return {
        "images": len(images),
        "psnr": distances.psnr(mse),
        "mse": mse,
        "worst_psnr": distances.psnr(max(each)),
    }


@torch.inference_mode()
def speed(network: nn.Module, packed: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """Milliseconds of a call with ``inputs`` in full precision and packed; packed with integer kernels where they can
    be had, with what the layers without one say."""
    device = inputs.x.device
    rows = {"float32": _milliseconds(lambda: architectures.predict(network, inputs), device)}
    if device.type == "cuda":
        half, told = copy.deepcopy(network).half(), _halves(inputs)
        rows["float16"] = _milliseconds(lambda: architectures.predict(half, told), device)
    rows["packed, in floats"] = _milliseconds(lambda: architectures.predict(packed, inputs), device)
    given = kernels.use_kernels(packed)
    have = {name for name in given.values() if name in kernels.KERNELS}
    if have:
        rows["packed, integers"] = _milliseconds(lambda: architectures.predict(packed, inputs), device)
    return {
        "batch": len(inputs.x),
        "milliseconds": rows,
        "kernels": dict(Counter(given.values())),
        "machine": measuring.machine(device),
    }


def _halves(inputs: Inputs) -> Inputs:
    """The same in 16 bits, but for timesteps and classes."""

    def half(tensor: Tensor) -> Tensor:
        return tensor.half() if tensor.is_floating_point() else tensor

    context = None if inputs.context is None else half(inputs.context)
    added = inputs.added and {name: half(tensor) for name, tensor in inputs.added.items()}
    return inputs._replace(x=inputs.x.half(), context=context, added=added)


def inputs_of(model: Denoiser, batch: int) -> Inputs:
    """Noise at a middle timestep, under no condition."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, *model.shape, generator=generator).to(model.device)
    schedule: Any = model.scheduler.config
    middle = schedule.num_train_timesteps // 2
    context = None if model.conditioner is None else model.conditioner([None] * batch)
    return Inputs(x, torch.full((batch,), middle, device=model.device), context)


def _milliseconds(call: Callable[[], Any], device: torch.device) -> float:
    """The median of some calls after one that does not count; of a long one, that one."""
    first = measuring.seconds(call, device)
    if first > _LONG:
        return first * 1e3
    return statistics.median(measuring.seconds(call, device) for _ in range(_REPEATS)) * 1e3
