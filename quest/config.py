"""Typed configuration: the one source of the schema, of every default and of docs/config.md.

``config/config.yaml`` holds the axes of a run (which datasets, methods, bit-widths and seeds);
``config/datasets/<dataset>.yaml`` holds the protocol of one dataset; ``config/variants.yaml`` names methods with some
settings changed. A key that is left out has the default below; a wrong key or value raises ConfigError naming the
file, the key, what was found and what is allowed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

CONFIG_FILE = Path("config/config.yaml")
FULL_PRECISION = "fp"

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]


class ConfigError(ValueError):
    """A configuration that cannot be run; the message says which key, what was found and what is allowed."""


class Settings(BaseModel):
    """Base of every settings class: unknown keys are errors, values do not change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


S = TypeVar("S", bound=Settings)


class Bits(NamedTuple):
    """Bit-widths of weights and activations, written ``w4a8``; 32 is full precision."""

    weight: int
    activation: int

    @classmethod
    def parse(cls, text: str) -> Bits:
        """``"w4a8"`` to Bits(4, 8). Raises ConfigError unless both are in 2…8, or both 32."""
        match = re.fullmatch(r"w(\d+)a(\d+)", text)
        bits = cls(int(match[1]), int(match[2])) if match else None
        if bits is None or str(bits) != text or (bits != cls(32, 32) and not all(2 <= b <= 8 for b in bits)):
            raise ConfigError(
                f"bits: {text!r} is not w<weight bits>a<activation bits> with bits from 2 to 8, like w4a8"
            )
        return bits

    def __str__(self) -> str:
        return f"w{self.weight}a{self.activation}"


UNQUANTIZED = Bits(32, 32)


class Cell(NamedTuple):
    """One row of a table before seeds: a method at a bit-width."""

    method: str
    bits: str


class SamplerSettings(Settings):
    """How images are drawn: DDIM (Song et al. 2021, eq. 12) or PLMS (Liu et al. 2022) on the model's noise schedule."""

    kind: Literal["ddim", "plms"] = Field(default="ddim", description="plms is deterministic, on the uniform grid")
    steps: Positive = Field(default=20, description="sampling steps")
    eta: NonNegative = Field(default=0.0, description="0 is deterministic DDIM, 1 is as noisy as DDPM")
    spacing: Literal["uniform", "quadratic"] = Field(
        default="uniform", description="of the timesteps; quadratic has more of them where there is little noise"
    )
    timesteps: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None, description="the timesteps themselves, noisiest first, instead of a spacing"
    )
    guidance_scale: NonNegative = Field(
        default=1.0, description="classifier-free guidance of conditional models; 1 is without"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> SamplerSettings:
        if self.kind == "plms" and (self.eta or self.spacing != "uniform" or self.timesteps is not None):
            raise ValueError("kind is plms, which has eta 0, uniform spacing and no timesteps of its own")
        if self.timesteps is not None:
            if len(self.timesteps) != self.steps:
                raise ValueError(f"{len(self.timesteps)} timesteps are given, but steps is {self.steps}")
            if sorted(self.timesteps, reverse=True) != list(self.timesteps):
                raise ValueError("timesteps must come noisiest first, from large to small")
        return self


class ConditionSettings(Settings):
    """What each image is drawn for: exactly one of the two."""

    classes: Positive | None = Field(default=None, description="classes in turn: image i is of class i mod classes")
    prompts: Path | None = Field(default=None, description="text file of prompts in turn, one a line")

    @model_validator(mode="after")
    def _one(self) -> ConditionSettings:
        if (self.classes is None) == (self.prompts is None):
            raise ValueError("expected either classes or prompts")
        return self


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


class QuantizerSettings(Settings):
    """The grid that every method stands on (QuEST, section 4.1 and released settings)."""

    weight_search: Literal["max", "mse"] = Field(
        default="mse", description="range of a weight channel: its extremes, or the best of 80 shrinks by L2.4 error"
    )
    weight_group: Positive | None = Field(
        default=None,
        description="consecutive inputs of an output channel that share a weight scale, like 64; without, all of them; "
        "the first convolution, which has few inputs, keeps one scale a channel",
    )
    activation_symmetric: bool = Field(default=False, description="signed grid with zero point 0, or an asymmetric one")
    activation_search: Literal["max", "mse", "percentile"] = Field(
        default="percentile",
        description="range of an activation: its extremes, the best of 80 shrinks, or the best of three percentiles",
    )
    activation_granularity: dict[Literal["4", "8"], Literal["per_tensor", "per_token", "per_channel"]] = Field(
        default={"8": "per_tensor", "4": "per_channel"},
        description="what shares an activation scale, up to 4 bits and up to 8 (per channel at 4: the released code)",
    )
    softmax_bits: Annotated[int, Field(ge=2, le=16)] = Field(default=8, description="bits of attention probabilities")
    edge_activation_bits: Annotated[int, Field(ge=2, le=8)] = Field(
        default=8, description="activation bits of the first and the last convolution"
    )
    split_shortcuts: bool = Field(
        default=False, description="quantize the two halves of a concatenated shortcut separately (Q-Diffusion)"
    )
    legacy_symmetric_levels: bool = Field(
        default=False,
        description="codes -2^b to 2^b of symmetric activations: 33 at 4 bits, which is 5.04 bits and counted as such "
        "(QuEST's released code until August 2024)",
    )

    @field_validator("activation_granularity", mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        """Keys may be YAML integers; a width that is left out keeps its default."""
        if not isinstance(given, dict):
            return given
        default = cls.model_fields["activation_granularity"].default
        return default | {str(bits): granularity for bits, granularity in given.items()}

    @model_validator(mode="after")
    def _legacy_is_symmetric(self) -> QuantizerSettings:
        if self.legacy_symmetric_levels and not self.activation_symmetric:
            raise ValueError("legacy_symmetric_levels is of symmetric grids; set activation_symmetric too")
        return self

    def granularity(self, activation_bits: int) -> str:
        """The activation granularity at a bit-width."""
        return self.activation_granularity["4" if activation_bits <= 4 else "8"]


class ReconstructionSettings(Settings):
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
    cache_mib: Positive = Field(
        default=4_096,
        description="memory for cached block inputs and targets on the device; the rest spills to host memory",
    )


Variant = Literal["blocks", "temporal"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
"""How the layers are grouped that are reconstructed together."""


class MethodSettings(Settings):
    """What the methods share. reconstruction: the variant of reconstructed weights that a method starts from."""

    reconstruction: ClassVar[Variant | None] = None
    sets: Positive = Field(
        default=20,
        description="groups of sampling steps with activation scales of their own (T' of QuEST); divides sampler.steps",
    )
    policy: Literal["common", "paper", "time_full_precision"] = Field(
        default="common",
        description="which layers are quantized: everything, what the method's paper quantizes, or everything but the "
        "time embedding",
    )

    @property
    def starts_from(self) -> Variant | None:
        """The reconstruction that a cell with these settings needs, if any."""
        return self.reconstruction

    def lower_bits(self, activation_bits: int) -> tuple[int, ...]:
        """Activation bit-widths below those of the run that single sampling steps may use."""
        return ()


class MinmaxSettings(MethodSettings):
    """Nearest rounding and calibrated activation ranges; nothing is trained. The floor of every table."""


class QDiffusionSettings(MethodSettings):
    """Q-Diffusion: learned rounding, then learned step sizes of static activation grids; released code."""

    reconstruction: ClassVar[Variant | None] = "blocks"
    sets: Positive = Field(
        default=1,
        description="groups of sampling steps with activation scales of their own; one: the same at all steps",
    )
    iterations: Positive = Field(default=5_000, description="Adam steps for the activation scales of each block")
    batch_size: Positive = 32
    lr: Rate = Field(default=4e-4, description="falls to 0 along a cosine")
    samples: Positive = Field(default=5_120, description="calibration samples used, spread over all recorded steps")
    running_statistics: bool = Field(
        default=False,
        description="replace the searched ranges by running means of the extremes before scales are learned",
    )
    cache_mib: Positive = Field(
        default=4_096,
        description="memory for cached block inputs and targets on the device; the rest spills to host memory",
    )


class PtqdSettings(QDiffusionSettings):
    """PTQD: a sampler that corrects for the quantization noise of a Q-Diffusion network; released code."""

    batch_size: Positive = 16
    samples: Positive = Field(default=1_024, description="calibration samples used, spread over all recorded steps")
    trajectories: Positive = Field(
        default=1_024, description="full-precision trajectories that the noise is measured on"
    )
    held_out: Positive = Field(default=64, description="trajectories more, on which the correction is checked")
    direction: Literal["reduced", "original"] = Field(
        default="reduced",
        description="sampler noise in the coefficient of the predicted noise: as reduced (released code), or as it was",
    )
    centred_bias: bool = Field(
        default=False,
        description="take the correlated part out of the bias, which else counts it twice (as the released code does)",
    )
    step_bits: tuple[Annotated[int, Field(ge=2, le=8)], ...] = Field(
        default=(),
        description="lower activation bit-widths than the run's, each taken by those sampling steps whose quantization "
        "noise is then still below the noise in their input (paper, section 3.4); none: the run's at all steps",
    )

    def lower_bits(self, activation_bits: int) -> tuple[int, ...]:
        return tuple(sorted({bits for bits in self.step_bits if bits < activation_bits}, reverse=True))


class QuestSettings(MethodSettings):
    """QuEST: time-embedding alignment (TLA), then attention-related alignment (CMA); paper section 3.3."""

    reconstruction: ClassVar[Variant | None] = "blocks"
    rounding: Literal["learned", "nearest"] = Field(
        default="learned", description="rounding of the weights that finetuning starts from"
    )
    stages: tuple[Literal["tla", "cma", "full"], ...] = Field(
        default=("tla", "cma"),
        description="what is finetuned, in this order; full: every layer and activation scale at once, on the schedule "
        "of stage 2",
    )
    passes: Rate = Field(default=1.0, description="multiplies the passes of every stage")
    tla_epochs: Positive = Field(default=200, description="passes of stage 1 over its samples")
    tla_samples: Positive = Field(default=8, description="samples of each recorded step used in stage 1")
    tla_batch_size: Positive = 2
    tla_weight_lr: Rate = 1e-5
    tla_scale_lr: Rate = 1e-5
    cma_epochs: Positive = Field(default=20, description="passes of stage 2 over its samples")
    cma_samples: Positive = Field(default=64, description="samples of each recorded step used in stage 2")
    cma_batch_size: Positive = 4
    cma_weight_lr: Rate = 1e-5
    cma_scale_lr: Rate = 1e-4
    cma_layers: tuple[str, ...] = Field(
        default=("attention_q", "attention_k", "attention_v", "feed_forward"),
        description="roles of the layers whose weights stage 2 trains",
    )
    adapter_rank: Positive | None = Field(
        default=None,
        description="rank of the adapters that stage 2 trains instead of weights (QALoRA), merged when it ends",
    )
    local_loss: bool = Field(default=True, description="match the outputs of the trained layers")
    global_loss: bool = Field(default=True, description="match the predicted noise (L_G)")

    @property
    def starts_from(self) -> Variant | None:
        return self.reconstruction if self.rounding == "learned" else None


class EfficientDMSettings(MethodSettings):
    """EfficientDM: low-rank weight adapters that merge into the integers, trained on the teacher's trajectories."""

    reconstruction: ClassVar[Variant | None] = "blocks"
    sets: Positive = Field(
        default=100, description="learned activation scales: one for each sampling step; divides sampler.steps"
    )
    trajectories: Positive = Field(
        default=160, description="trajectories of the teacher trained on, an optimizer step for each sampling step"
    )
    batch_size: Positive = Field(default=2, description="samples of one trajectory")
    rank: Positive = 32
    base: Literal["int", "fp"] = Field(
        default="int",
        description="what an adapter is added to: the dequantized codes (released code), or the original weight",
    )
    weight_search: Literal["max", "quantizer"] = Field(
        default="max", description="initial range of a weight channel: its extremes, or as quantizer.weight_search says"
    )
    rounding: Literal["nearest", "learned"] = Field(
        default="nearest",
        description="rounding of the weights that adapters start from; learned needs weight_search quantizer, whose "
        "ranges it was learned on",
    )
    adapter_lr_divisor: Rate = Field(
        default=2_500, description="an adapter's learning rate is the mean weight scale of its layer, divided by this"
    )
    weight_scale_lr: Rate = 1e-6
    activation_lr: Rate = Field(default=5e-4, description="of activation scales and zero points (TALSQ)")
    weight_decay: NonNegative = Field(default=0.01, description="of AdamW, on all that is trained")

    @property
    def starts_from(self) -> Variant | None:
        return self.reconstruction if self.rounding == "learned" else None

    @model_validator(mode="after")
    def _rounding_has_its_ranges(self) -> EfficientDMSettings:
        if self.rounding == "learned" and self.weight_search == "max":
            raise ValueError("rounding is learned on the ranges of the quantizer; set weight_search to quantizer too")
        return self


class TFMQDMSettings(MethodSettings):
    """TFMQ-DM: temporal features reconstructed on their own, then activation ranges for each sampling step."""

    reconstruction: ClassVar[Variant | None] = "temporal"
    sets: Positive = Field(
        default=20, description="activation ranges: one for each sampling step; divides sampler.steps"
    )
    batch_size: Positive = Field(default=16, description="samples that a running range sees at once")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.95, description="share of a running range that each further batch leaves as it was"
    )


class MethodsSettings(Settings):
    """Settings of each method; the defaults are the papers'."""

    minmax: MinmaxSettings = MinmaxSettings()
    q_diffusion: QDiffusionSettings = QDiffusionSettings()
    ptqd: PtqdSettings = PtqdSettings()
    quest: QuestSettings = QuestSettings()
    efficientdm: EfficientDMSettings = EfficientDMSettings()
    tfmq_dm: TFMQDMSettings = TFMQDMSettings()


METHODS: tuple[str, ...] = tuple(name.replace("_", "-") for name in MethodsSettings.model_fields)


class ClipSettings(Settings):
    """CLIP score of text-conditional images."""

    model: str = Field(
        default="openai/clip-vit-base-patch16",
        description="CLIP model: a hub id, a folder, or an artifact (.safetensors) of an embedded dataset",
    )
    prompts: Path = Field(description="text file: line i is the prompt of image i")


class EvaluationSettings(Settings):
    """How many images are drawn, and what they are measured by (the defaults are ADM's evaluator's)."""

    images: Annotated[int, Field(ge=2)] = 50_000
    shards: Positive = Field(default=1, description="independent sampling jobs of one cell")
    batch_size: Positive = 100
    neighbours: Positive = Field(default=3, description="k of precision and recall")
    inception_split_size: Positive = Field(
        default=5_000, description="images of one group of the inception score, which is averaged over groups"
    )
    kid_block_size: Positive = Field(default=1_000, description="images of one block of KID, averaged over blocks")
    clip: ClipSettings | None = Field(default=None, description="set for text-conditional models only")


class AnalysisSettings(Settings):
    """How much the studies look at; only the `analyse` rule reads this."""

    bits: str = Field(default="w4a4", description="bit-width of the networks that are studied")
    samples: Positive = Field(default=16, description="trajectories that layers are observed on")
    steps: Positive = Field(
        default=5, description="most sampling steps that layers are observed at; as many as divide sampler.steps"
    )
    images: Annotated[int, Field(ge=2)] = Field(
        default=32, description="images drawn for each setting of the sensitivity and token studies"
    )

    @field_validator("bits")
    @classmethod
    def _quantized(cls, bits: str) -> str:
        if Bits.parse(bits) == UNQUANTIZED:
            raise ValueError("w32a32 is full precision; expected bits from 2 to 8")
        return bits


class UNetSettings(Settings):
    """Architecture of an embedded model (diffusers' UNet2DModel; UNet2DConditionModel with a condition)."""

    channels: tuple[Positive, ...]
    layers_per_block: Positive = 2
    attention: tuple[bool, ...] = Field(
        description="attention at each resolution, highest first; to the condition too where there is one"
    )
    attention_head_dim: Positive = 8
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class AutoencoderSettings(Settings):
    """First stage of an embedded latent model (diffusers' VQModel or AutoencoderKL) and its training."""

    kind: Literal["vq", "kl"]
    channels: tuple[Positive, ...] = Field(description="of each resolution, which halves from one to the next")
    latent_channels: Positive
    codes: Positive = Field(default=512, description="size of the codebook (vq)")
    steps: Positive = Field(default=4_000, description="optimizer steps")
    batch_size: Positive = 256
    lr: Rate = 8e-4


class ClipTrainingSettings(Settings):
    """CLIP model of an embedded text-conditional dataset: its text encoder, and its CLIP score."""

    width: Positive = Field(default=96, description="channels of both transformers and of the embedding")
    head_width: Positive = 24
    text_layers: Positive = 2
    vision_layers: Positive = 3
    patch_size: Positive = 4
    tokens: Positive = Field(default=16, description="length that captions are padded to")
    steps: Positive = Field(default=2_000, description="optimizer steps, of one picture of each caption")
    lr: Rate = 5e-4


class PretrainSettings(Settings):
    """How an embedded model is trained; only the `pretrain` rules read this."""

    unet: UNetSettings
    autoencoder: AutoencoderSettings | None = Field(default=None, description="set for latent models only")
    clip: ClipTrainingSettings | None = Field(default=None, description="set for models of prompts only")
    images: Positive = Field(default=100_000, description="pictures to train on, where a program draws them")
    steps: Positive = Field(description="optimizer steps of the denoiser")
    batch_size: Positive = 512
    lr: Rate = 4e-4
    weight_decay: NonNegative = 1e-4
    ema: Annotated[float, Field(gt=0, lt=1)] = 0.999
    condition_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="share of the samples that are trained without their condition, for guidance"
    )
    snr_cap: Rate | None = Field(
        default=None,
        description="γ of min-SNR weighting (Hang et al. 2023): less weight where there is little noise; without, all "
        "noise levels count alike",
    )
    classifier_steps: Positive = Field(default=2_000, description="optimizer steps of the feature extractor")
    classifier_width: Positive = Field(default=64, description="features of the extractor")
    seed: int = 0


class DatasetSettings(Settings):
    """The protocol of one dataset."""

    title: str = Field(description="one line for tables and the report")
    model: Path = Field(description="full-precision denoiser, an artifact of kind 'model'")
    source: str | None = Field(
        default=None,
        description="what the `import` rule makes `model` from: a folder of a diffusers pipeline, a CompVis checkpoint "
        "(.ckpt), or a hub id",
    )
    source_sha256: str | None = Field(
        default=None, description="sha256 that `source` must have; `quest import` logs what it is"
    )
    architecture: Path | None = Field(
        default=None, description="hyper-parameters of a CompVis checkpoint, one of config/models/*.yaml"
    )
    extractor: Path = Field(
        description="feature extractor of the metrics: an artifact of kind 'extractor', or Inception's weights (.pth)"
    )
    real_images: Literal["digits", "shapes"] | None = Field(
        default=None, description="embedded real images; the reference of the metrics"
    )
    reference_images: Positive = Field(
        default=10_000, description="pictures of the reference, where a program draws them"
    )
    reference_batch: Path | None = Field(
        default=None, description="the reference instead: a batch of ADM's layout (.npz), with or without statistics"
    )
    reference_sha256: str | None = Field(default=None, description="sha256 that `reference_batch` must have")
    image_size: Positive
    image_channels: Positive
    condition: ConditionSettings | None = Field(default=None, description="set for conditional models only")
    sampler: SamplerSettings = SamplerSettings()
    calibration: CalibrationSettings = CalibrationSettings()
    quantizer: QuantizerSettings = QuantizerSettings()
    reconstruction: ReconstructionSettings = ReconstructionSettings()
    methods: MethodsSettings = MethodsSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    analysis: AnalysisSettings = AnalysisSettings()
    pretrain: PretrainSettings | None = Field(default=None, description="set for embedded models only")

    @model_validator(mode="after")
    def _fits_together(self) -> DatasetSettings:
        # A stage is given the sections that it depends on; what is not there cannot disagree.
        counts = {"calibration.steps": self.calibration.steps} if "calibration" in self.model_fields_set else {}
        counts |= {f"methods.{name}.sets": getattr(self.methods, name).sets for name in self.methods.model_fields_set}
        for key, count in counts.items():
            if self.sampler.steps % count:
                raise ValueError(f"{key} is {count}, which does not divide sampler.steps = {self.sampler.steps}")
        if self.source is not None and self.pretrain is not None:
            raise ValueError("source and pretrain are both set; a model is imported or trained here, so leave one out")
        if self.real_images is not None and self.reference_batch is not None:
            raise ValueError(
                "real_images and reference_batch are both set; a table has one reference, so leave one out"
            )
        if self.evaluation.shards > self.evaluation.images:
            raise ValueError(
                f"evaluation.shards is {self.evaluation.shards}, more than evaluation.images = {self.evaluation.images}"
            )
        return self

    def method(self, name: str) -> MethodSettings:
        """Settings of one method, or of a variant's method, by the name that people use, like ``q-diffusion``."""
        return getattr(self.methods, base_method(name).replace("-", "_"))


class MethodVariant(Settings):
    """A method with some settings changed. It is named ``<method>+<what is changed>`` and stands wherever a method's
    name does. The keys are those of a dataset's protocol, which they override."""

    methods: dict[str, dict[str, Any]] = Field(default={}, description="settings of the method")
    quantizer: dict[str, Any] = Field(default={}, description="what the cell's activation grids change")

    def applied(self, settings: DatasetSettings, source: str) -> DatasetSettings:
        """``settings`` with the overrides. Raises ConfigError that begins with ``source``."""
        given = settings.model_dump(mode="json", exclude_unset=True)
        return validate(DatasetSettings, merged(given, self.model_dump(exclude_unset=True)), source)


def base_method(name: str) -> str:
    """The method of a variant; a method itself is its own."""
    return name.partition("+")[0]


class RunSettings(Settings):
    """The axes of a run: every combination is one cell of the tables."""

    datasets: Annotated[list[str], Field(min_length=1)] = Field(description="names of files in config/datasets")
    methods: Annotated[list[str], Field(min_length=1)] = Field(
        description="quantization methods; full precision is always added"
    )
    bits: Annotated[list[str], Field(min_length=1)] = Field(description="bit-widths, like w4a8")
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = Field(
        description="one whole chain (calibration to metrics) for each, unless `chains` says otherwise"
    )
    chains: Positive | None = Field(
        default=None,
        description="how many of the seeds have a chain of their own; seed number i of the others samples with the "
        "quantized models of number i mod `chains`. Default: every seed",
    )
    tables: list[str] = Field(
        default=[], description="tables of `config/published.yaml` to make too, from their own cells on the same seeds"
    )
    suite: str | None = Field(
        default=None,
        description="of the command line only: `snakemake --config suite=NAME` runs config/NAME.yaml",
    )

    @model_validator(mode="after")
    def _a_seed_for_each_chain(self) -> RunSettings:
        if self.chains is not None and self.chains > len(self.seeds):
            raise ValueError(f"chains is {self.chains}, more than there are seeds, {self.seeds}")
        return self

    @property
    def chain_seeds(self) -> list[int]:
        """The seeds with a chain of their own, from calibration to checkpoint."""
        return self.seeds[: self.chains]

    def chain_seed(self, seed: int) -> int:
        """The seed whose quantized models ``seed`` samples with; its own, too, where it is none of the run's."""
        if seed not in self.seeds:
            return seed
        return self.chain_seeds[self.seeds.index(seed) % len(self.chain_seeds)]


class Config(NamedTuple):
    """A validated run: its axes, the protocol of each of its datasets, and all variants of methods by name."""

    run: RunSettings
    datasets: dict[str, DatasetSettings]
    variants: dict[str, MethodVariant]

    def settings(self, dataset: str, method: str = FULL_PRECISION) -> DatasetSettings:
        """The settings of a cell: its dataset's, with what its variant overrides."""
        return of_cell(self.datasets[dataset], method, self.variants)

    def cells(self) -> Iterator[Cell]:
        """Full precision first, then every method at every bit-width."""
        yield Cell(FULL_PRECISION, str(UNQUANTIZED))
        for bits in self.run.bits:
            for method in self.run.methods:
                yield Cell(method, bits)


def load(source: Path | dict[str, Any] = CONFIG_FILE, folder: Path | None = None) -> Config:
    """Read and validate a run.

    source: the run's YAML file, or its content (Snakemake's ``config``).
    folder: where ``datasets/`` lies; beside the file, or ``config/``.
    Raises ConfigError.
    """
    folder = folder or (source.parent if isinstance(source, Path) else CONFIG_FILE.parent)
    name = str(source) if isinstance(source, Path) else str(CONFIG_FILE)
    run = validate(RunSettings, _read(source) if isinstance(source, Path) else source, name)
    variants = load_variants(folder)
    for method in run.methods:
        if method not in METHODS and method not in variants:
            raise ConfigError(f"{name}: methods: {unknown(method, [*METHODS, *variants])}")
    for bits in run.bits:
        try:
            parsed = Bits.parse(bits)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None
        if parsed == UNQUANTIZED:
            raise ConfigError(
                f"{name}: bits: w32a32 is full precision, which every table has already; expected bits from 2 to 8"
            )
    for axis in ("datasets", "methods", "bits", "seeds"):
        values = getattr(run, axis)
        if len(set(values)) < len(values):
            raise ConfigError(f"{name}: {axis}: {values} names a value twice")
    config = Config(run, {dataset: load_dataset(dataset, folder) for dataset in run.datasets}, variants)
    for dataset, settings in config.datasets.items():
        counts = {"calibration.steps": settings.calibration.steps}
        counts |= {
            f"methods.{method}.sets": config.settings(dataset, method).method(method).sets for method in run.methods
        }
        for key, count in counts.items():  # also those that the protocol leaves at their defaults
            if settings.sampler.steps % count:
                where = f"{folder}/datasets/{dataset}.yaml: {key}"
                raise ConfigError(f"{where} is {count}, which does not divide sampler.steps = {settings.sampler.steps}")
    return config


def run_file(suite: str | None = None, folder: Path = CONFIG_FILE.parent) -> Path:
    """The file of the run called ``suite``, like paper; of the default run without. Raises ConfigError."""
    if suite is None:
        return folder / CONFIG_FILE.name
    known = sorted({path.stem for path in folder.glob("*.yaml")} - {"variants", "published"})
    if suite not in known:
        raise ConfigError(f"suite: {unknown(str(suite), known)} (the files of {folder})")
    return folder / f"{suite}.yaml"


def load_dataset(dataset: str, folder: Path = CONFIG_FILE.parent) -> DatasetSettings:
    """Read and validate ``<folder>/datasets/<dataset>.yaml``. Raises ConfigError, naming the known datasets."""
    known = sorted(path.stem for path in (folder / "datasets").glob("*.yaml"))
    if dataset not in known:
        raise ConfigError(f"datasets: {unknown(dataset, known)} (the files of {folder / 'datasets'})")
    path = folder / "datasets" / f"{dataset}.yaml"
    return validate(DatasetSettings, _read(path), str(path))


def load_variants(folder: Path = CONFIG_FILE.parent) -> dict[str, MethodVariant]:
    """Read ``<folder>/variants.yaml``: the variants of methods by name; none where there is no such file.

    Raises ConfigError for a name that is not ``<method>+<what is changed>`` of a known method, or an override of
    another method or of what all cells share through the reconstruction.
    """
    path = folder / "variants.yaml"
    content = (_read(path) or {}) if path.exists() else {}
    variants = {}
    for name, overrides in content.items():
        where = f"{path}: {name}"
        if not re.fullmatch(r"[a-z-]+\+[a-z0-9-]+", name):
            raise ConfigError(f"{where}: a variant is named <method>+<what is changed>, like quest+no-local-loss")
        if (base := base_method(name)) not in METHODS:
            raise ConfigError(f"{where}: {unknown(base, METHODS)}")
        variants[name] = variant = validate(MethodVariant, overrides, where)
        if others := set(variant.methods) - {base.replace("-", "_")}:
            raise ConfigError(f"{where}: methods.{min(others)}: a variant of {base} overrides its settings alone")
        if shared := set(variant.quantizer) & {"weight_search", "split_shortcuts"}:
            raise ConfigError(f"{where}: quantizer.{min(shared)}: weights are reconstructed once for all cells")
    return variants


def of_cell(settings: DatasetSettings, method: str, variants: Mapping[str, MethodVariant]) -> DatasetSettings:
    """A dataset's settings as the cells of ``method`` have them: with the overrides, where it is a variant.

    Raises ConfigError, naming the known methods and variants.
    """
    if method in (FULL_PRECISION, *METHODS):
        return settings
    if method not in variants:
        raise ConfigError(f"method: {unknown(method, [*METHODS, *variants])}")
    return variants[method].applied(settings, f"variants.yaml: {method}")


def validate(cls: type[S], content: Any, source: str) -> S:
    """``content`` as ``cls``; every fault of it in one ConfigError that names ``source`` and each key."""
    try:
        return cls.model_validate(content)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{source}: {_explain(cls, fault)}" for fault in error.errors())) from None


def unknown(name: str, known: Iterable[str]) -> str:
    """The sentence for a name that is not one of ``known``, with the nearest suggestion."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"unknown {name!r}{hint}; known are {', '.join(known)}"


def merged(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``content`` with ``changes`` put in, branch by branch."""
    below = {key: merged(content.get(key) or {}, value) for key, value in changes.items() if isinstance(value, dict)}
    return {**content, **changes, **below}


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}; run from the project's folder or name the file with --config"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None


def _explain(cls: type[Settings], fault: Any) -> str:
    """One human sentence for one of pydantic's faults."""
    keys = fault["loc"]
    key = ".".join(str(part) for part in keys)
    if fault["type"] == "extra_forbidden":
        owner: Any = cls
        for part in keys[:-1]:
            annotation = owner.model_fields[part].annotation
            owner = next(t for t in (annotation, *get_args(annotation)) if hasattr(t, "model_fields"))
        return f"{key}: {unknown(str(keys[-1]), owner.model_fields)}"
    if fault["type"] == "missing":
        return f"{key}: missing; it has no default"
    if fault["type"] == "value_error":
        return f"{key}: {fault['msg']}".removeprefix(": ").replace("Value error, ", "")
    return f"{key}: found {fault['input']!r}; {fault['msg'].removeprefix('Input should be').strip()} is expected"
