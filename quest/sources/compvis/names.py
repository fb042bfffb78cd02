"""From the name of a weight in diffusers' networks to its name and shape in a checkpoint of latent diffusion."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from torch import nn

from quest.sources.compvis.config import Architecture

UNET, FIRST_STAGE, CLASSES = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
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


def average_of(old: str) -> str:
    """Name in a checkpoint of the moving average of a weight of the noise predictor."""
    return "model_ema." + old.removeprefix("model.").replace(".", "")


def is_fused(old: str) -> bool:
    """Whether a weight in a checkpoint is query, key and value in one."""
    return _FUSED.search(old) is not None


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
        fused = is_fused(old)
        ones = 0
        if len(shape) == 2:
            ones = 2 if ".attn_1." in old else int(fused or ".proj_out." in old)
        yield old, (shape[0] * (3 if fused else 1), *shape[1:], *(1,) * ones)


def _renamed(name: str, table: Mapping[str, str]) -> str:
    part = next(part for part in table if name.startswith(f"{part}."))
    return table[part] + name.removeprefix(part)
