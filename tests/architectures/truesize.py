"""Configurations of published networks, as their config.json says, and how many parameters they are known to have."""

from __future__ import annotations

from typing import Any

# In diffusers' port every block of DiT has its own copy of the embedders of timestep (256 channels) and class (1,000
# and none), and positions are no parameter; 675,129,632 are those of the published network.
_DIT_EMBEDDERS = (256 + 1) * 1152 + (1152 + 1) * 1152 + 1001 * 1152
_DIT = 675_129_632 - 256 * 1152 + 27 * _DIT_EMBEDDERS

TRUE_SIZE: dict[str, tuple[int, str, dict[str, Any]]] = {
    "sdxl": (
        2_567_463_684,
        "UNet2DConditionModel",
        {
            "act_fn": "silu",
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "attention_head_dim": [5, 10, 20],
            "block_out_channels": [320, 640, 1280],
            "cross_attention_dim": 2048,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "in_channels": 4,
            "layers_per_block": 2,
            "mid_block_type": "UNetMidBlock2DCrossAttn",
            "out_channels": 4,
            "projection_class_embeddings_input_dim": 2816,
            "sample_size": 128,
            "transformer_layers_per_block": [1, 2, 10],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "use_linear_projection": True,
        },
    ),
    "dit-xl-2": (
        _DIT,
        "DiTTransformer2DModel",
        {
            "attention_bias": True,
            "attention_head_dim": 72,
            "in_channels": 4,
            "num_attention_heads": 16,
            "num_embeds_ada_norm": 1000,
            "num_layers": 28,
            "out_channels": 8,
            "patch_size": 2,
            "sample_size": 32,
        },
    ),
    "pixart-sigma": (
        610_856_096,
        "PixArtTransformer2DModel",
        {
            "attention_head_dim": 72,
            "caption_channels": 4096,
            "cross_attention_dim": 1152,
            "in_channels": 4,
            "interpolation_scale": 2,
            "num_attention_heads": 16,
            "num_layers": 28,
            "out_channels": 8,
            "patch_size": 2,
            "sample_size": 128,
            "use_additional_conditions": False,
        },
    ),
    "sd3-medium": (
        2_028_328_000,
        "SD3Transformer2DModel",
        {
            "attention_head_dim": 64,
            "caption_projection_dim": 1536,
            "in_channels": 16,
            "joint_attention_dim": 4096,
            "num_attention_heads": 24,
            "num_layers": 24,
            "out_channels": 16,
            "patch_size": 2,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 192,
            "sample_size": 128,
        },
    ),
    "flux-dev": (
        11_901_408_320,
        "FluxTransformer2DModel",
        {
            "attention_head_dim": 128,
            "axes_dims_rope": [16, 56, 56],
            "guidance_embeds": True,
            "in_channels": 64,
            "joint_attention_dim": 4096,
            "num_attention_heads": 24,
            "num_layers": 19,
            "num_single_layers": 38,
            "patch_size": 1,
            "pooled_projection_dim": 768,
        },
    ),
}
