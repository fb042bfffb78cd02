"""Training of an embedded noise predictor (Ho et al. 2020, eq. 14), conditional ones for classifier-free guidance.

Where ``snr_cap`` γ is given, the squared error of a noise level counts min(SNR, γ) / SNR (Hang et al. 2023, section
3.4): levels of little noise, which decide little of what a picture shows, then do not outweigh the others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers.models.embeddings import LabelEmbedding, TimestepEmbedding
from diffusers.models.normalization import AdaLayerNormZero
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from quest.config.dataset import DatasetSettings
from quest.config.pretraining import PretrainSettings, TransformerSettings, UNetSettings
from quest.diffusion.conditioners import ClassEmbedder, ClassLabels
from quest.embedded import images as embedded
from quest.embedded.training.optimization import fit


class Conditions(NamedTuple):
    """What the images are of, for training.

    indices: of each image (N,) int64. null: the index that stands for no condition.
    context: indices (n,) to what the network is told. channels: of a context (n, tokens, channels); None where the
    network is told the indices. embedder: makes the context while sampling; trained along where it has parameters.
    """

    indices: Tensor
    null: int
    context: Callable[[Tensor], Tensor]
    channels: int | None
    embedder: ClassLabels | None = None


def of_classes(settings: DatasetSettings, labels: Tensor, device: torch.device) -> Conditions | None:
    """The classes of a protocol, of labelled images, or None: embedded by vectors that are trained along for a U-Net,
    by their numbers for a transformer. Raises ValueError for fewer than the images are of."""
    pretrain, condition = settings.pretrain, settings.condition
    if pretrain is None or condition is None or condition.classes is None:
        return None
    of_images = embedded.classes(settings.real_images, labels).to(device)
    null = condition.classes
    if int(of_images.max()) >= null:
        raise ValueError(f"condition.classes: {null}, but images are of more")
    if pretrain.unet is None:
        return Conditions(of_images, null, lambda n: n, None, ClassLabels(null).to(device))
    channels = pretrain.unet.channels[-1]
    embedder = ClassEmbedder(null + 1, channels).to(device)
    return Conditions(of_images, null, lambda n: embedder.embedding(n).unsqueeze(1), channels, embedder)


def of_contexts(labels: Tensor, contexts: Tensor, null: Tensor) -> Conditions:
    """Labels whose contexts (labels, tokens, channels) are known, and that of no condition (1, tokens, channels)."""
    table = torch.cat([contexts, null])
    return Conditions(labels.to(table.device), len(contexts), lambda n: table[n], table.shape[-1])


def build_unet(settings: UNetSettings, channels: int, size: int, context: int | None = None) -> Any:
    """An untrained UNet2DModel on (channels, size, size), or a UNet2DConditionModel with contexts of that width."""
    cross = "" if context is None else "Cross"
    shared: dict[str, Any] = {
        "sample_size": size,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": settings.channels,
        "layers_per_block": settings.layers_per_block,
        "down_block_types": tuple(f"{cross}AttnDownBlock2D" if here else "DownBlock2D" for here in settings.attention),
        "up_block_types": tuple(
            f"{cross}AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(settings.attention)
        ),
        "norm_num_groups": 8,
        "dropout": settings.dropout,
    }
    if context is None:
        return UNet2DModel(**shared, attention_head_dim=settings.attention_head_dim)
    # What this class calls the dimension of a head is their number.
    heads: Any = tuple(max(1, width // settings.attention_head_dim) for width in settings.channels)
    return UNet2DConditionModel(**shared, attention_head_dim=heads, cross_attention_dim=context)


def build_transformer(settings: TransformerSettings, channels: int, size: int, classes: int) -> Any:
    """An untrained DiTTransformer2DModel on (channels, size, size), begun as in the paper (Peebles and Xie 2023).

    But for the vectors of the classes, of unit deviation: from the paper's 0.02 a short training hardly hears of them.
    Raises ValueError for a size that is no whole number of patches.
    """
    if size % settings.patch_size:
        raise ValueError(
            f"pretrain.transformer.patch_size: {settings.patch_size} does not divide {size}, the latents' side"
        )
    network = DiTTransformer2DModel(
        num_attention_heads=settings.heads,
        attention_head_dim=settings.head_dim,
        in_channels=channels,
        num_layers=settings.layers,
        sample_size=size,
        patch_size=settings.patch_size,
        num_embeds_ada_norm=classes,
    )
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, TimestepEmbedding):
            nn.init.normal_(module.linear_1.weight, std=0.02)
            nn.init.normal_(module.linear_2.weight, std=0.02)
        elif isinstance(module, LabelEmbedding):
            module.dropout_prob = 0.0  # each block would drop others: whose label is left out is said from outside
        elif isinstance(module, AdaLayerNormZero):
            nn.init.zeros_(module.linear.weight)  # so that every block begins as the identity
    nn.init.zeros_(network.proj_out_1.weight)
    nn.init.zeros_(network.proj_out_2.weight)
    return network


def build_network(settings: PretrainSettings, shape: tuple[int, int, int], conditions: Conditions | None) -> Any:
    """The untrained network of an embedded model on (C, h, w). Raises ValueError for a transformer without classes."""
    channels, size, _ = shape
    if settings.unet is not None:
        return build_unet(settings.unet, channels, size, None if conditions is None else conditions.channels)
    assert settings.transformer is not None  # the settings have one of both
    if conditions is None or conditions.channels is not None:
        raise ValueError("pretrain.transformer: this network is told classes; expected condition.classes")
    return build_transformer(settings.transformer, channels, size, conditions.null)


def noise_level_weights(alphas: Tensor, snr_cap: float | None) -> Tensor:
    """What the squared error counts at each ᾱ (T,): min(SNR, snr_cap) / SNR, or 1."""
    if snr_cap is None:
        return torch.ones_like(alphas)
    return (snr_cap * (1 - alphas) / alphas).clamp(max=1)


class Trained(NamedTuple):
    """The moving average of the network and, where it is learned, of its embedder; the schedule; the running mean of
    the loss at each fiftieth of the steps."""

    network: Any
    scheduler: DDIMScheduler
    embedder: ClassLabels | None
    losses: list[float]


def train_denoiser(
    clean: Tensor, settings: PretrainSettings, device: torch.device, conditions: Conditions | None = None
) -> Trained:
    """Train on clean (N, C, h, w), images in [-1, 1] or latents of unit deviation."""
    data = clean.to(device)
    scheduler = DDIMScheduler(num_train_timesteps=1000, beta_schedule="linear", clip_sample=False, steps_offset=1)
    alphas = scheduler.alphas_cumprod.to(device)
    channels, height, width = data.shape[1:]
    network = build_network(settings, (channels, height, width), conditions).to(device)
    trained = nn.ModuleList([network])
    if conditions is not None and conditions.embedder is not None:
        trained.append(conditions.embedder)
    average = copy.deepcopy(trained).requires_grad_(False)
    weights = noise_level_weights(alphas, settings.snr_cap)

    def loss_of(_step: int) -> Tensor:
        batch = torch.randint(len(data), (settings.batch_size,), device=device)
        t = torch.randint(len(alphas), (len(batch),), device=device)
        noise = torch.randn(len(batch), *data.shape[1:], device=device)
        signal = alphas[t].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * data[batch] + (1 - signal).sqrt() * noise
        told: tuple[Tensor, ...] = ()
        if conditions is not None:
            dropped = torch.rand(len(batch), device=device) < settings.condition_dropout
            told = (conditions.context(torch.where(dropped, conditions.null, conditions.indices[batch])),)
        error = (network(noisy, t, *told).sample.float() - noise).square()
        return (error * weights[t].view(-1, 1, 1, 1)).mean()

    means: list[Any] = list(average.parameters())
    parameters: list[Any] = list(trained.parameters())

    def after(step: int) -> None:
        # A short memory at first, so that the average does not keep the random start.
        decay = min(settings.ema, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(means, parameters, step)

    optimization = settings.steps, settings.lr, settings.weight_decay
    losses = fit(trained, loss_of, "denoiser", *optimization, after, half=True, replayed=True)
    mean, *embedders = average.eval()
    embedder: Any = embedders[0] if embedders else None
    return Trained(mean, scheduler, embedder, losses)
