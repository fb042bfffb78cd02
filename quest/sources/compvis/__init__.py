"""Checkpoints of CompVis' latent diffusion (Rombach et al. 2022, released code) as diffusers networks.

An `Architecture` is what the published configuration files say, under their names. A network is built from it empty,
and every one of its weights is looked up in the checkpoint by the name that the released code gives it: nothing is
guessed, and what is missing, misshapen or left over is an error that names it.

What diffusers' own conversion does not cover is done here: query, key and value fused in one convolution, interleaved
head by head; residual blocks that halve or double the resolution; scale-shift norms; a fixed number of heads over
levels of different width; moving averages of the weights.
"""

from quest.sources.compvis.build import build_autoencoder, build_conditioner, build_schedule, build_unet
from quest.sources.compvis.config import Architecture, read_architecture
from quest.sources.compvis.names import (
    CLASSES,
    UNET,
    autoencoder_names,
    average_of,
    stored_shapes,
    unet_names,
)
from quest.sources.compvis.read import convert, open_checkpoint, read_state

__all__ = [
    "CLASSES",
    "UNET",
    "Architecture",
    "autoencoder_names",
    "average_of",
    "build_autoencoder",
    "build_conditioner",
    "build_schedule",
    "build_unet",
    "convert",
    "open_checkpoint",
    "read_architecture",
    "read_state",
    "stored_shapes",
    "unet_names",
]
