"""Checkpoints of CompVis' latent diffusion (Rombach et al. 2022, released code) as diffusers networks.

An `Architecture` is what the published configuration files say, under their names. A network is built from it empty,
and every one of its weights is looked up in the checkpoint by the name that the released code gives it: nothing is
guessed, and what is missing, misshapen or left over is an error that names it.

What diffusers' own conversion does not cover is done here: query, key and value fused in one convolution, interleaved
head by head; residual blocks that halve or double the resolution; scale-shift norms; a fixed number of heads over
levels of different width; moving averages of the weights.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from numpy._core import multiarray
from pydantic import Field
from torch import Tensor, nn

from quest import architectures
from quest.artifacts import ArtifactError
from quest.config.reading import validate
from quest.config.values import ConfigError, Positive, Settings
from quest.diffusion.conditioners import ClassEmbedder
from quest.diffusion.denoiser import Denoiser
from quest.diffusion.first_stage import FirstStage

UNET, FIRST_STAGE, CLASSES = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
_UNUSED = ("first_stage_model.loss.", "first_stage_model.model_ema.")  # of training


class UNetConfig(Settings):
    """`unet_config.params` of a published configuration."""

    image_size: Positive
    in_channels: Positive
    out_channels: Positive
    model_channels: Positive
    attention_resolutions: tuple[int, ...]
    num_res_blocks: Positive
    channel_mult: tuple[Positive, ...]
    num_heads: int = -1
    num_head_channels: int = -1
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    use_spatial_transformer: bool = False
    transformer_depth: Literal[1] = 1
    context_dim: int | None = None

    def heads(self, channels: int) -> int:
        """Heads of an attention over ``channels``."""
        return self.num_heads if self.num_head_channels == -1 else channels // self.num_head_channels

    def attends(self, level: int) -> bool:
        """Whether the blocks at resolution ``level`` (0 is the highest) have attention."""
        return 2**level in self.attention_resolutions


class AutoencoderConfig(Settings):
    """`first_stage_config.params.ddconfig`."""

    double_z: bool
    z_channels: Positive
    resolution: Positive
    in_channels: Positive
    out_ch: Positive
    ch: Positive
    ch_mult: tuple[Positive, ...]
    num_res_blocks: Positive
    attn_resolutions: tuple[()] = ()
    dropout: float = 0.0


class FirstStageConfig(Settings):
    """`first_stage_config.params`; kind: the class, VQModelInterface or AutoencoderKL."""

    kind: Literal["vq", "kl"]
    ddconfig: AutoencoderConfig
    embed_dim: Positive
    n_embed: int = 0


class Architecture(Settings):
    """A published model. linear_start and linear_end: of β, whose square root is linear in the timestep."""

    unet_config: UNetConfig
    first_stage: FirstStageConfig
    n_classes: int = Field(default=0, description="classes of the class embedder, the one for no class included")
    use_ema: bool = Field(description="whether the model is the moving average of the weights")
    scale_factor: float = Field(default=1.0, description="of the latents; a checkpoint's own wins")
    scale_by_std: bool = Field(default=False, description="whether the scale factor stands in the checkpoint")
    linear_start: float = 0.0015
    linear_end: float = 0.0195
    url: str = Field(default="", description="where the checkpoint was published")


def read_architecture(path: Path) -> Architecture:
    """Read an architecture from YAML or JSON. Raises ConfigError."""
    try:
        return validate(Architecture, yaml.safe_load(path.read_text()), str(path))
    except OSError as error:
        raise ConfigError(
            f"architecture: {path}: {error.strerror}; those of the published models are config/models/*.yaml"
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None


def open_checkpoint(path: Path, architecture: Architecture) -> Denoiser:
    """The model of a checkpoint, weights in the checkpoint's precision.

    Raises ArtifactError for a file that cannot be read, holds anything but data, or does not fit ``architecture``.
    """
    state = read_state(path)
    try:
        return convert(state, architecture)
    except ValueError as error:
        raise ArtifactError(f"{path}: not a checkpoint of this architecture: {error}") from error


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint. Raises ArtifactError as `read_tensors` does."""
    content = read_tensors(path)
    state = content.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        found = sorted(map(str, content))[:5]
        raise ArtifactError(f"{path}: found keys {found}; expected a checkpoint with tensors under 'state_dict'")
    return state


def read_tensors(path: Path) -> dict[str, Any]:
    """What a file of `torch.save` holds, as data only: one that would run code is refused before it does.

    Raises ArtifactError for such a file, and one that is damaged or no dict.
    """
    try:
        if zipfile.is_zipfile(path):  # torch does not check the checksums that it writes
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise ValueError(f"{damaged} has another CRC than when it was written")
        with torch.serialization.safe_globals(_HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL `?([\w.]+)", str(error))
        what = f"it names {found[1]}, which is code" if found else "it is damaged, or holds more than tensors"
        raise ArtifactError(
            f"{path}: refused, and nothing in it was executed: {what}. Expected tensors and plain data; fetch the "
            "published file again"
        ) from error
    except Exception as error:  # of many kinds, by what the damaged bytes happen to be
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtifactError(f"{path}: cannot be read ({reason}); fetch it again") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path}: found {type(content).__name__}; expected a dict of tensors")
    return content


def convert(state: Mapping[str, Tensor], architecture: Architecture) -> Denoiser:
    """A state dict as a model. Raises ValueError naming the first weight that is missing, misshapen or unknown."""
    if architecture.scale_by_std and "scale_factor" not in state:
        raise ValueError("scale_factor: missing; expected a number, since this model's latents are scaled by it")
    scale = float(state.get("scale_factor", architecture.scale_factor))
    parts: list[tuple[nn.Module, Callable[[str], str]]] = [
        (build_unet(architecture), unet_names(architecture)),
        (build_autoencoder(architecture), autoencoder_names(architecture)),
    ]
    if architecture.n_classes:
        parts.append((build_conditioner(architecture), CLASSES.__add__))
    known = {old for network, name in parts for old, _ in stored_shapes(network, name)}
    for old in state:
        if old not in known and old.startswith((UNET, FIRST_STAGE, CLASSES)) and not old.startswith(_UNUSED):
            raise ValueError(f"{old}: found {tuple(state[old].shape)}, but the architecture has no such weight")
    unet, autoencoder, *embedder = [_loaded(part, name, state, architecture.use_ema) for part, name in parts]
    conditioner = embedder[0] if embedder else None
    return Denoiser(unet, build_schedule(architecture), FirstStage(autoencoder, scale), conditioner)


def average_of(old: str) -> str:
    """Name in a checkpoint of the moving average of a weight of the noise predictor."""
    return "model_ema." + old.removeprefix("model.").replace(".", "")


def build_schedule(architecture: Architecture) -> DDIMScheduler:
    """The noise schedule, with the released sampler's timesteps (one later than a multiple) and last step (to ᾱ₀)."""
    return DDIMScheduler(
        beta_start=architecture.linear_start,
        beta_end=architecture.linear_end,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def build_unet(architecture: Architecture) -> UNet2DModel | UNet2DConditionModel:
    """The noise predictor without weights, on the meta device."""
    unet = architecture.unet_config
    levels = range(len(unet.channel_mult))
    channels = [unet.model_channels * multiple for multiple in unet.channel_mult]
    common: dict[str, Any] = {
        "sample_size": unet.image_size,
        "in_channels": unet.in_channels,
        "out_channels": unet.out_channels,
        "block_out_channels": channels,
        "layers_per_block": unet.num_res_blocks,
    }
    resize = "resnet" if unet.resblock_updown else "conv"
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if unet.resblock_updown else _PLAIN
    attending = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D") if unet.use_spatial_transformer else _ATTENDING
    down = [(attending if unet.attends(level) else plain)[0] for level in levels]
    up = [(attending if unet.attends(level) else plain)[1] for level in reversed(levels)]
    heads: Any = tuple(map(unet.heads, channels))
    shift = "scale_shift" if unet.use_scale_shift_norm else "default"
    with torch.device("meta"):
        if unet.use_spatial_transformer:
            return UNet2DConditionModel(
                **common,
                down_block_types=tuple(down),
                up_block_types=tuple(up),
                resnet_time_scale_shift=shift,
                cross_attention_dim=unet.context_dim or 0,
                attention_head_dim=heads,  # a number of heads, whatever its name
            )
        network = UNet2DModel(
            **common,
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            downsample_type=resize,
            upsample_type=resize,
            resnet_time_scale_shift=shift,
            attn_norm_num_groups=32,
            attention_head_dim=channels[0] // unet.heads(channels[0]),
        )
    known = architectures.of(network)
    for name, attention in known.attentions().items():
        known.set_heads(name, unet.heads(attention.inner_dim))  # type: ignore[arg-type]
    return network


def build_autoencoder(architecture: Architecture) -> VQModel | AutoencoderKL:
    """The first stage without weights, on the meta device."""
    stage, config = architecture.first_stage, architecture.first_stage.ddconfig
    common: dict[str, Any] = {
        "in_channels": config.in_channels,
        "out_channels": config.out_ch,
        "block_out_channels": tuple(config.ch * multiple for multiple in config.ch_mult),
        "down_block_types": ("DownEncoderBlock2D",) * len(config.ch_mult),
        "up_block_types": ("UpDecoderBlock2D",) * len(config.ch_mult),
        "layers_per_block": config.num_res_blocks,
        "latent_channels": config.z_channels,
        "sample_size": config.resolution,
        "scaling_factor": architecture.scale_factor,
    }
    with torch.device("meta"):
        if stage.kind == "kl":
            return AutoencoderKL(**common)
        return VQModel(**common, num_vq_embeddings=stage.n_embed, vq_embed_dim=stage.embed_dim)


def build_conditioner(architecture: Architecture) -> ClassEmbedder:
    """The class embedder without weights, on the meta device."""
    with torch.device("meta"):
        return ClassEmbedder(architecture.n_classes, architecture.unet_config.context_dim or 0)


def unet_names(architecture: Architecture) -> Callable[[str], str]:
    """From the name of a weight in `build_unet` to its name in a checkpoint."""
    unet = architecture.unet_config
    depth, levels = unet.num_res_blocks + 1, len(unet.channel_mult)

    def block(side: str, position: int, part: str, index: int) -> str:
        if side == "down":
            place = position * depth + 1 + (unet.num_res_blocks if part == "downsamplers" else index)
            return f"input_blocks.{place}.{int(part == 'attentions')}"
        place = position * depth + (unet.num_res_blocks if part == "upsamplers" else index)
        sub = {"resnets": 0, "attentions": 1, "upsamplers": 1 + unet.attends(levels - 1 - position)}[part]
        return f"output_blocks.{place}.{sub}"

    def name(new: str) -> str:
        if found := _BLOCK.fullmatch(new):
            side, position, part, index, inner = found.groups()
            prefix = block(side, int(position), part, int(index))
        elif found := _MIDDLE.fullmatch(new):
            part, index, inner = found.groups()
            prefix = f"middle_block.{1 if part == 'attentions' else 2 * int(index)}"
        else:
            return UNET + _renamed(new, _OUTSIDE)
        if part == "attentions":
            inner = inner if unet.use_spatial_transformer else _renamed(inner, _ATTENTION)
        elif part == "resnets" or unet.resblock_updown:
            inner = _renamed(inner, _RESIDUAL)
        elif part == "downsamplers":
            inner = inner.replace("conv", "op")
        return f"{UNET}{prefix}.{inner}"

    return name


def autoencoder_names(architecture: Architecture) -> Callable[[str], str]:
    """From the name of a weight in `build_autoencoder` to its name in a checkpoint."""
    last = len(architecture.first_stage.ddconfig.ch_mult) - 1

    def name(new: str) -> str:
        new = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{last - int(found[1])}", new)
        for pattern, old in _AUTOENCODER:
            new = re.sub(pattern, old, new)
        return FIRST_STAGE + re.sub(r"mid\.block_(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", new)

    return name


def stored_shapes(network: nn.Module, name: Callable[[str], str]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape in a checkpoint of every weight of ``network``; one, three times, for a fused query, key, value.

    Attention is made of 1×1 convolutions there.
    """
    for new, tensor in network.state_dict().items():
        old, shape = name(new), tuple(tensor.shape)
        fused = _FUSED.search(old) is not None
        ones = 0
        if len(shape) == 2:
            ones = 2 if ".attn_1." in old else int(fused or ".proj_out." in old)
        yield old, (shape[0] * (3 if fused else 1), *shape[1:], *(1,) * ones)


def _loaded(network: Any, name: Callable[[str], str], state: Mapping[str, Tensor], averaged: bool) -> Any:
    """``network`` with its weights from ``state``; averaged: a noise predictor with their moving averages."""
    found = {}
    for old, shape in stored_shapes(network, name):
        key = average_of(old) if averaged and old.startswith(UNET) else old
        if key not in state:
            raise ValueError(f"{key}: missing; expected {shape}")
        if tuple(state[key].shape) != shape:
            raise ValueError(f"{key}: found {tuple(state[key].shape)}, expected {shape}")
        found[old] = state[key]
    tensors = {}
    for new, target in network.state_dict().items():
        tensor = found[name(new)]
        if _FUSED.search(name(new)):
            attention, _, part = new.rpartition(".")[0].rpartition(".to_")
            # Rows come head by head, each with its query, key and value (the released code's "legacy" order).
            of_head = tensor.view(network.get_submodule(attention).heads, 3, -1, *tensor.shape[1:])
            tensor = of_head[:, "qkv".index(part)].flatten(0, 1)
        tensors[new] = tensor.reshape(target.shape)
    network.load_state_dict(tensors, assign=True)
    return network.eval().requires_grad_(False)


def _renamed(name: str, table: Mapping[str, str]) -> str:
    part = next(part for part in table if name.startswith(f"{part}."))
    return table[part] + name.removeprefix(part)


class _ModelCheckpoint:
    """Stands in for a class of pytorch-lightning, which its checkpoints name as a key and nothing of which is used."""


# What published checkpoints hold beside tensors: a callback's class as a key, and numbers of numpy.
_HARMLESS: list[Any] = [
    (_ModelCheckpoint, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
    (multiarray.scalar, "numpy.core.multiarray.scalar"),  # as numpy 1 named it
    multiarray.scalar,
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
    np.dtypes.Int64DType,
]
_PLAIN, _ATTENDING = ("DownBlock2D", "UpBlock2D"), ("AttnDownBlock2D", "AttnUpBlock2D")
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)")
_FUSED = re.compile(r"\.qkv\.(weight|bias)$")
_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ATTENTION = {"group_norm": "norm", "to_q": "qkv", "to_k": "qkv", "to_v": "qkv", "to_out.0": "proj_out"}
_AUTOENCODER = (
    (r"down_blocks\.", "down."),
    (r"mid_block\.resnets\.", "mid.block_"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"resnets\.", "block."),
    (r"(down|up)samplers\.0", r"\1sample"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
    (r"group_norm", "norm"),
    (r"to_out\.0", "proj_out"),
    (r"to_([qkv])\.", r"\1."),
)
