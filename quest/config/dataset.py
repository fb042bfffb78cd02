"""The protocol of one dataset: `config/datasets/<dataset>.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from quest import paths
from quest.config.evaluation import EvaluationSettings
from quest.config.learning import CalibrationSettings, ReconstructionSettings
from quest.config.method import MethodSettings
from quest.config.methods import MethodsSettings, python_name
from quest.config.pretraining import PretrainSettings
from quest.config.quantizer import QuantizerSettings
from quest.config.reading import named_files, read, unknown, validate
from quest.config.sampling import ConditionSettings, SamplerSettings
from quest.config.studies import AnalysisSettings
from quest.config.values import ConfigError, Positive, Settings


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
    image_size: Annotated[int, Field(gt=0, le=8_192)]
    image_channels: Annotated[int, Field(gt=0, le=16)]
    condition: ConditionSettings | None = Field(default=None, description="set for conditional models only")
    sampler: SamplerSettings = SamplerSettings()
    calibration: CalibrationSettings = CalibrationSettings()
    quantizer: QuantizerSettings = QuantizerSettings()
    reconstruction: ReconstructionSettings = ReconstructionSettings()
    methods: MethodsSettings = MethodsSettings()  # type: ignore[valid-type]
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
        return getattr(self.methods, python_name(name))


def load_dataset(dataset: str, folder: Path = paths.CONFIG) -> DatasetSettings:
    """Read and validate ``<folder>/datasets/<dataset>.yaml``. Raises ConfigError, naming the known datasets."""
    files = named_files(folder / "datasets", "a dataset")
    if dataset not in files:
        raise ConfigError(f"datasets: {unknown(dataset, files)} (the files of {folder / 'datasets'})")
    return validate(DatasetSettings, read(files[dataset]), str(files[dataset]))
