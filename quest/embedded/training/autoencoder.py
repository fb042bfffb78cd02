"""Training of a first stage (Rombach et al. 2022, section 3.1) without its adversarial and perceptual terms.

Pictures of few colours and sharp edges need neither; the loss is the absolute and the squared error.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss

from quest.config.pretraining import AutoencoderSettings
from quest.diffusion.first_stage import FirstStage
from quest.embedded.training.optimization import fit

_FREE = 0.2  # share of the steps before a codebook is laid into the latents, which have found their place by then
_REVIVED = 0.7  # share of the steps up to which codes that nothing uses move to latents of the batch
_REVIVAL_STEPS = 50
_KL_WEIGHT = 1e-4  # of the mean divergence of a latent from the normal distribution
_CHUNK = 1024


class Trained(NamedTuple):
    """A first stage; what the network sees, latents (N, C, h, w) of unit deviation; facts for the manifest."""

    first_stage: FirstStage
    latents: Tensor
    notes: dict[str, float]


def build(settings: AutoencoderSettings, image_channels: int) -> VQModel | AutoencoderKL:
    """An untrained autoencoder."""
    levels = len(settings.channels)
    shared: dict[str, Any] = {
        "in_channels": image_channels,
        "out_channels": image_channels,
        "block_out_channels": settings.channels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": 1,
        "latent_channels": settings.latent_channels,
        "norm_num_groups": 8,
    }
    if settings.kind == "kl":
        return AutoencoderKL(**shared)
    network = VQModel(**shared, num_vq_embeddings=settings.codes)
    network.quantize.legacy = False  # the commitment weighs less than the codebook (van den Oord et al. 2017, eq. 3)
    return network


def train_autoencoder(images: Tensor, settings: AutoencoderSettings, device: torch.device) -> Trained:
    """Train on images (N, C, H, W) uint8 and encode them all. Of the notes, psnr is in dB, on the last 1,024 images."""
    x = images.to(device)
    network = build(settings, x.shape[1])
    network.to(device)  # pyright: ignore[reportArgumentType]

    def batch() -> Tensor:
        return _scaled(x[torch.randint(len(x), (settings.batch_size,), device=device)])

    vq = isinstance(network, VQModel)
    loss_of = _vq_loss(network, batch, settings) if vq else _kl_loss(network, batch)
    fit(network, loss_of, "first stage", settings.steps, settings.lr)

    network.requires_grad_(False)
    stage = FirstStage(network)
    with torch.inference_mode():
        latents = encoded(stage, x)
        stage.scale_factor = 1 / latents.std().item()
        latents *= stage.scale_factor
        last = _scaled(x[-_CHUNK:])
        error = mse_loss(stage.decode(latents[-_CHUNK:]).clamp(-1, 1), last) / 4
        notes = {"psnr": -10 * error.log10().item()}
        if isinstance(network, VQModel):
            used = torch.cat([_codes(network, part / stage.scale_factor).unique() for part in latents.split(_CHUNK)])
            notes["codes_used"] = len(used.unique())
    return Trained(stage, latents.clone(), notes)


@torch.no_grad()
def encoded(stage: FirstStage, images: Tensor) -> Tensor:
    """Latents (N, C, h, w) of images (N, C, H, W) uint8 on the device of the first stage."""
    return torch.cat([stage.encode(_scaled(part)) for part in images.split(_CHUNK)])


def _kl_loss(network: AutoencoderKL, batch: Any) -> Any:
    def loss_of(_step: int) -> Tensor:
        images = batch()
        encoded: Any = network.encode(images)
        posterior = encoded.latent_dist
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        decoded: Any = network.decode(posterior.sample())
        return _error(decoded.sample, images) + _KL_WEIGHT * divergence

    return loss_of


def _vq_loss(network: VQModel, batch: Any, settings: AutoencoderSettings) -> Any:
    """Without the codebook at first, which then starts from latents; dead codes move to latents later on."""
    codebook = network.quantize.embedding.weight
    free, revived = round(_FREE * settings.steps), round(_REVIVED * settings.steps)
    used = torch.zeros(len(codebook), dtype=torch.bool, device=codebook.device)

    def loss_of(step: int) -> Tensor:
        images = batch()
        latents: Any = network.encode(images).latents
        if step < free:
            return _error(network.decode(latents, force_not_quantize=True, return_dict=False)[0], images)
        with torch.no_grad():
            vectors = latents.detach().movedim(1, -1).flatten(0, -2)
            fresh = vectors[torch.randint(len(vectors), (len(codebook),), device=vectors.device)]
            if step == free:
                codebook.copy_(fresh)
            elif step < revived and (step - free) % _REVIVAL_STEPS == 0:
                codebook.copy_(torch.where(used.unsqueeze(1), codebook, fresh))
                used.zero_()
            used[_codes(network, latents.detach())] = True
        decoded: Any = network.decode(latents)
        return _error(decoded.sample, images) + decoded.commit_loss

    return loss_of


def _codes(network: VQModel, latents: Tensor) -> Tensor:
    """Indices of the codes that latents go to."""
    return network.quantize(latents)[2][2]


def _error(found: Tensor, images: Tensor) -> Tensor:
    return l1_loss(found, images) + mse_loss(found, images)


def _scaled(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1
