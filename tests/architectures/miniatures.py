"""Random-weight miniatures of published networks, made by diffusers alone, and what each is called with there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from quest.architectures import Inputs

WORDS, TEXT, POOLED = 5, 12, 6  # tokens of a prompt, their channels, and those of the prompt as a whole


@dataclass(frozen=True)
class Miniature:
    """told: for a batch of so many, what our library is told; call: the same, as diffusers' own pipeline calls it."""

    make: Callable[[], Any]
    told: Callable[[int], Inputs]
    call: Callable[[Any, Inputs], Any]

    def network(self) -> Any:
        """The same weights each time, none of them zero: some families begin with zeros."""
        torch.manual_seed(0)
        network = self.make().eval()
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1 or name.endswith("bias"):
                nn.init.normal_(parameter, std=0.3 * parameter[0].numel() ** -0.5)
        return network.requires_grad_(False)


def _drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _times(n: int) -> Tensor:
    return torch.tensor([7, 400, 999])[torch.arange(n) % 3]


def _images(n: int, channels: int) -> tuple[Tensor, Tensor]:
    return _drawn(n, channels, 8, 8), _times(n)


def _tokens(n: int) -> Tensor:
    return _drawn(n, WORDS, TEXT)


def _unet(**changes: Any) -> Callable[[], UNet2DConditionModel]:
    config: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (1, 2),
        "cross_attention_dim": TEXT,
        "norm_num_groups": 4,
    }
    return lambda: UNet2DConditionModel(**(config | changes))


def _class_unet() -> UNet2DModel:
    return UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=4,
        num_class_embeds=11,
    )


def _added(inputs: Inputs) -> dict[str, Tensor]:
    assert inputs.added is not None
    return dict(inputs.added)


def _tokens_of_image(x: Tensor) -> Tensor:
    """As FluxPipeline packs its latents."""
    n, channels, height, width = x.shape
    x = x.view(n, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(n, (height // 2) * (width // 2), channels * 4)


def _flux(guided: bool) -> Miniature:
    def make() -> FluxTransformer2DModel:
        network = FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=TEXT,
            pooled_projection_dim=POOLED,
            guidance_embeds=guided,
            axes_dims_rope=(2, 2, 4),
        )
        network.register_to_config(sample_size=8)  # of the latents, which a pipeline knows and this config does not
        return network

    def told(n: int) -> Inputs:
        added = {"pooled_projections": _drawn(n, POOLED)} | ({"guidance": torch.full((n,), 3.5)} if guided else {})
        return Inputs(*_images(n, 4), _tokens(n), added)

    def call(network: Any, inputs: Inputs) -> Any:
        places = torch.zeros(4, 4, 3)
        places[..., 1] += torch.arange(4)[:, None]
        places[..., 2] += torch.arange(4)[None, :]
        return network(
            hidden_states=_tokens_of_image(inputs.x),
            timestep=inputs.timesteps / 1000,
            encoder_hidden_states=inputs.context,
            img_ids=places.reshape(16, 3),
            txt_ids=torch.zeros(WORDS, 3),
            **_added(inputs),
        )

    return Miniature(make, told, call)


def _sd3(**changes: Any) -> Miniature:
    def make() -> SD3Transformer2DModel:
        config: dict[str, Any] = {
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": TEXT,
            "caption_projection_dim": 16,
            "pooled_projection_dim": POOLED,
            "pos_embed_max_size": 8,
        }
        return SD3Transformer2DModel(**(config | changes))

    return Miniature(
        make,
        lambda n: Inputs(*_images(n, 4), _tokens(n), {"pooled_projections": _drawn(n, POOLED)}),
        lambda network, told: network(
            hidden_states=told.x, timestep=told.timesteps, encoder_hidden_states=told.context, **_added(told)
        ),
    )


def _pixart(sized: bool) -> Miniature:
    def make() -> PixArtTransformer2DModel:
        return PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            cross_attention_dim=24,
            sample_size=8,
            use_additional_conditions=sized,
            caption_channels=TEXT,
        )

    def told(n: int) -> Inputs:
        mask = (torch.arange(WORDS) < WORDS - 2).float().expand(n, -1)
        sizes = {"resolution": torch.full((n, 2), 64.0), "aspect_ratio": torch.ones(n, 1)}
        return Inputs(*_images(n, 4), _tokens(n), {"encoder_attention_mask": mask} | (sizes if sized else {}))

    def call(network: Any, inputs: Inputs) -> Any:
        added = _added(inputs)
        mask = added.pop("encoder_attention_mask")
        return network(
            inputs.x,
            encoder_hidden_states=inputs.context,
            encoder_attention_mask=mask,
            timestep=inputs.timesteps,
            added_cond_kwargs=added or {"resolution": None, "aspect_ratio": None},
        )

    return Miniature(make, told, call)


def _dit() -> DiTTransformer2DModel:
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=10,
    )


def _classes(n: int) -> Tensor:
    return torch.tensor([3, 10, 0])[torch.arange(n) % 3]


def _plain(network: Any, told: Inputs) -> Any:
    return network(told.x, told.timesteps, encoder_hidden_states=told.context)


_SD2 = _unet(use_linear_projection=True, upcast_attention=True)
_SDXL = _unet(
    use_linear_projection=True,
    transformer_layers_per_block=(1, 2),
    addition_embed_type="text_time",
    addition_time_embed_dim=4,
    projection_class_embeddings_input_dim=POOLED + 6 * 4,
)
_SIZES = torch.tensor([8.0, 8, 0, 0, 8, 8])

MINIATURES = {
    "sd2": Miniature(_SD2, lambda n: Inputs(*_images(n, 4), _tokens(n)), _plain),
    "pruned": Miniature(_unet(mid_block_type=None), lambda n: Inputs(*_images(n, 4), _tokens(n)), _plain),
    "sdxl": Miniature(
        _SDXL,
        lambda n: Inputs(
            *_images(n, 4), _tokens(n), {"text_embeds": _drawn(n, POOLED), "time_ids": _SIZES.expand(n, -1)}
        ),
        lambda network, told: network(
            told.x, told.timesteps, encoder_hidden_states=told.context, added_cond_kwargs=_added(told)
        ),
    ),
    "lcm": Miniature(
        _unet(time_cond_proj_dim=10, num_class_embeds=7),
        lambda n: Inputs(
            *_images(n, 4), _tokens(n), {"timestep_cond": _drawn(n, 10), "class_labels": torch.arange(n) % 7}
        ),
        lambda network, told: network(told.x, told.timesteps, told.context, **_added(told)),
    ),
    "class-unet": Miniature(
        _class_unet,
        lambda n: Inputs(*_images(n, 3), _classes(n)),
        lambda network, told: network(told.x, told.timesteps, class_labels=told.context),
    ),
    "dit": Miniature(
        _dit,
        lambda n: Inputs(*_images(n, 4), _classes(n)),
        lambda network, told: network(told.x, timestep=told.timesteps, class_labels=told.context),
    ),
    "pixart-sigma": _pixart(sized=False),
    "pixart-alpha": _pixart(sized=True),
    "sd3": _sd3(),
    "sd3.5": _sd3(dual_attention_layers=(0,), qk_norm="rms_norm"),
    "flux": _flux(guided=True),
    "flux-schnell": _flux(guided=False),
}
