"""Images in shards. Image i of a seed is drawn from its own noise, whatever the shards, batches and devices."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from quest.config.dataset import DatasetSettings
from quest.config.sampling import SamplerSettings
from quest.device import within_memory
from quest.diffusion import denoiser as denoisers
from quest.diffusion.conditioners import TextEncoder
from quest.diffusion.conditions import EVALUATION, conditions, read_prompts
from quest.diffusion.correction import Correction
from quest.diffusion.denoiser import Denoiser
from quest.diffusion.finite import finite
from quest.noise import SampleNoise

log = logging.getLogger(__name__)


def draw(
    model: Denoiser,
    network: nn.Module,
    settings: DatasetSettings,
    seed: int,
    indices: range,
    device: torch.device,
    correction: Correction | None = None,
) -> Tensor:
    """Images ``indices`` of ``seed`` by ``network`` under a protocol, as `sample` gives them.

    Prompts longer than the model reads are counted in a warning.
    """
    _warn_of_cut_prompts(model, settings)
    wanted = conditions(settings.condition, EVALUATION, seed, indices)
    size = settings.evaluation.batch_size
    return sample(model, network, settings.sampler, seed, indices, wanted, size, device, correction)


def sample(
    model: Denoiser,
    network: nn.Module,
    settings: SamplerSettings,
    seed: int,
    indices: range,
    wanted: Sequence[Any] | None,
    batch_size: int,
    device: torch.device,
    correction: Correction | None = None,
) -> Tensor:
    """Images ``indices`` of ``seed`` by ``network``, (len(indices), channels, H, W) uint8 on the CPU.

    wanted: the condition of each of them, None for an unconditional model. Raises ValueError for images that are not
    finite.
    """
    sampler = model.sampler(settings)
    outputs = denoisers.Outputs(network, replayed=True)
    images = []

    @torch.inference_mode()
    def drawn(first: int, size: int) -> Tensor:
        batch = slice(first, first + size)
        noise = SampleNoise(EVALUATION, seed, indices[batch], model.shape)
        guidance = model.guidance(None if wanted is None else wanted[batch], sampler.guidance_scale)
        x = sampler.sample(denoisers.predictor(outputs, guidance), noise, device, correction)
        return to_uint8(model.decode(x))

    batches = range(0, len(indices), batch_size)
    for first in tqdm(batches, desc="sample", unit="batch", mininterval=5):
        size = min(batch_size, len(indices) - first)
        images.append(within_memory("evaluation.batch_size", size, partial(drawn, first)))
    return torch.cat(images)


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] to 0 … 255, rounded; values outside are clipped. Raises ValueError for what is not finite."""
    return ((finite(x, "images") + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()


def shard_indices(images: int, shard: int, shards: int) -> range:
    """The images of one shard: contiguous, sizes differing by at most one."""
    if not 0 <= shard < shards:
        raise ValueError(f"--shard: {shard}; evaluation.shards is {shards}, so 0 to {shards - 1} are there")
    return range(images * shard // shards, images * (shard + 1) // shards)


def _warn_of_cut_prompts(model: Denoiser, settings: DatasetSettings) -> None:
    file = settings.condition and settings.condition.prompts
    if not file or not isinstance(model.conditioner, TextEncoder):
        return
    prompts = read_prompts(file)
    if cut := model.conditioner.cut(prompts):
        log.warning("%s: %d of %d prompts are longer than the model reads, and cut", file, cut, len(prompts))
