"""What is recorded to learn from, and how rounding and activation scales are learned block by block."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from quest.config.values import NonNegative, Positive, Rate, Settings


class CalibrationSettings(Settings):
    """Which full-precision sampling states are recorded to calibrate and finetune on."""

    steps: Positive = Field(
        default=20,
        description="sampling steps that are recorded, evenly spread from the noisiest on; divides sampler.steps",
    )
    samples_per_step: Positive = Field(
        default=256,
        description="trajectories recorded at each of them; guided models are calibrated on twice as many samples",
    )


class CacheSettings(Settings):
    """What is recorded to learn from: a block's inputs and targets, or the teacher's outputs of finetuning."""

    cache_mib: Positive = Field(
        default=4_096,
        description="memory on the device for what is recorded to learn from (a block's inputs and targets, or a "
        "teacher's outputs); what does not fit is in host memory. Outputs of earlier blocks, from which recording goes "
        "on, take as much of host memory at most",
    )


class ScaleLearningSettings(CacheSettings):
    """Block-wise learned step sizes of activations, as in Q-Diffusion's released code."""

    iterations: Positive = Field(default=5_000, description="Adam steps for the activation scales of each block")
    batch_size: Positive = 32
    lr: Rate = Field(default=4e-4, description="falls to 0 along a cosine")
    samples: Positive = Field(default=5_120, description="calibration samples used, spread over all recorded steps")
    running_statistics: bool = Field(
        default=False,
        description="replace the searched ranges by running means of the extremes before scales are learned",
    )


class ReconstructionSettings(CacheSettings):
    """Block-wise learned rounding of the weights (AdaRound, as in Q-Diffusion)."""

    iterations: Positive = Field(default=20_000, description="Adam steps for each block")
    batch_size: Positive = 32
    lr: Rate = 1e-3
    rounding_weight: NonNegative = Field(default=0.01, description="weight of the term that drives rounding to 0 or 1")
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.2, description="fraction of the iterations without the rounding term"
    )
    beta: tuple[float, float] = Field(
        default=(20.0, 2.0), description="exponent of the rounding term, from and to (linear)"
    )
    samples: Positive = Field(default=1_024, description="calibration samples used, spread over all groups")
