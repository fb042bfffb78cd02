"""What came out: the folder is loaded as its users will load it, draws the same seeds as full precision, is timed."""

from __future__ import annotations

import logging
import statistics
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quest import architectures, artifacts
from quest.architectures import Inputs
from quest.bench import measuring
from quest.config.dataset import DatasetSettings
from quest.deploy import kernels
from quest.diffusion.conditions import EVALUATION, conditions
from quest.diffusion.denoiser import Denoiser
from quest.diffusion.sampling import sample, shard_indices
from quest.metrics import distances
from quest.metrics.measure import squared_errors
from quest.own.work import Work

log = logging.getLogger(__name__)

_REPEATS = 5
_LONG = 5.0  # seconds of a call that is timed once


def loaded(folder: Path, device: torch.device) -> Any:
    """The packed network of a pipeline's folder, on a device."""
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    with redirect_stderr(StringIO()):  # a bar of diffusers, over the parts of the pipeline
        pipeline: Any = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    return pipeline.unet.to(device).eval()


def drawn(work: Work, model: Denoiser, packed: nn.Module, settings: DatasetSettings, seed: int, made_of: str) -> Tensor:
    """Images (n, channels, H, W) uint8 of the packed network in the place of the model's; each batch is kept.

    made_of: what the network was packed from, so that batches of another are not taken for it.
    """
    around, evaluation = replace(model, network=packed), settings.evaluation
    shards = []
    for shard in range(evaluation.shards):
        file = work.file(f"trial.{shard}.safetensors")
        indices = shard_indices(evaluation.images, shard, evaluation.shards)
        if (kept := _kept(file, made_of, len(indices))) is None:
            wanted = conditions(settings.condition, EVALUATION, seed, indices)
            kept = sample(around, packed, settings.sampler, seed, indices, wanted, evaluation.batch_size, model.device)
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
def speed(model: Denoiser, packed: nn.Module, batch: int) -> dict[str, Any]:
    """Milliseconds of a call of ``batch`` samples in full precision and packed; packed with integer kernels where
    they can be had, with what the layers without one say."""
    device = model.device
    inputs = _inputs(model, batch)
    rows = {"float32": _milliseconds(lambda: architectures.predict(model.network, inputs), device)}
    if device.type == "cuda":
        half = model.copy(device, torch.float16).network
        told = inputs._replace(x=inputs.x.half(), context=None if inputs.context is None else inputs.context.half())
        rows["float16"] = _milliseconds(lambda: architectures.predict(half, told), device)
    rows["packed, in floats"] = _milliseconds(lambda: architectures.predict(packed, inputs), device)
    given = kernels.use_kernels(packed)
    have = {name for name in given.values() if name in kernels.KERNELS}
    if have:
        rows["packed, integers"] = _milliseconds(lambda: architectures.predict(packed, inputs), device)
    return {
        "batch": batch,
        "milliseconds": rows,
        "kernels": dict(Counter(given.values())),
        "machine": measuring.machine(device),
    }


def _inputs(model: Denoiser, batch: int) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, *model.shape, generator=generator).to(model.device)
    schedule: Any = model.scheduler.config
    middle = schedule.num_train_timesteps // 2
    context = None if model.conditioner is None else model.conditioner([None]).expand(batch, -1, -1)
    return Inputs(x, torch.full((batch,), middle, device=model.device), context)


def _milliseconds(call: Callable[[], Any], device: torch.device) -> float:
    """The median of some calls after one that does not count; of a long one, that one."""
    first = measuring.seconds(call, device)
    if first > _LONG:
        return first * 1e3
    return statistics.median(measuring.seconds(call, device) for _ in range(_REPEATS)) * 1e3
