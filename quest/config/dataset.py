"""The protocol of one dataset: `config/datasets/<dataset>.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from quest import paths
from quest.config.evaluation import EvaluationSettings
from quest.config.pretraining import PretrainSettings
from quest.config.quantization import QuantizationSettings
from quest.config.reading import named_files, read, unknown, validate
from quest.config.studies import AnalysisSettings
from quest.config.values import ConfigError, Positive


class DatasetSettings(QuantizationSettings):
    """The protocol of one dataset."""

    title: str = Field(description="one line for tables and the report")
    model: Path = Field(description="full-precision denoiser, an artifact of kind 'model'")
    source: str | None = Field(
        default=None,
        description="what `import_model` makes `model` from: a folder of a diffusers pipeline, a CompVis checkpoint "
        "(.ckpt), or a hub id",
    )
    source_sha256: str | None = Field(
        default=None, description="sha256 that `source` must have; `quest import-model` logs what it is"
    )
    architecture: Path | None = Field(
        default=None, description="hyper-parameters of a CompVis checkpoint, one of config/models/*.yaml"
    )
    clip_sample: bool = Field(
        default=True,
        description="keep the predicted image in range at every step if the scheduler of `source` does (clip_sample or "
        "thresholding); false: never, as the papers' samplers",
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
    evaluation: EvaluationSettings = EvaluationSettings()
    analysis: AnalysisSettings = AnalysisSettings()
    pretrain: PretrainSettings | None = Field(default=None, description="set for embedded models only")

    @model_validator(mode="after")
    def _fits_together(self) -> DatasetSettings:
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


def load_dataset(dataset: str, folder: Path = paths.CONFIG) -> DatasetSettings:
    """Read and validate ``<folder>/datasets/<dataset>.yaml``. Raises ConfigError, naming the known datasets."""
    if not (folder / "datasets").is_dir():
        raise ConfigError(f"{folder / 'datasets'}: no such folder; run from the project's folder, which has it")
    files = named_files(folder / "datasets", "a dataset")
    if dataset not in files:
        raise ConfigError(f"datasets: {unknown(dataset, files)} (the files of {folder / 'datasets'})")
    return validate(DatasetSettings, read(files[dataset]), str(files[dataset]))
