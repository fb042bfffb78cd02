"""The tiny model's chain up to a finetuned checkpoint, as a study finds it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from quest.config.dataset import DatasetSettings
from quest.stages import finetune, reconstruct
from quest.studies.subject import Subject

CPU = torch.device("cpu")
ANALYSIS = {"samples": 3, "steps": 2, "images": 4}


@pytest.fixture(scope="session")
def files(
    tmp_path_factory: pytest.TempPathFactory, model_file: Path, calibration_file: Path, settings: DatasetSettings
) -> dict[str, tuple[Path, ...]]:
    """All that a study may read of the tiny model."""
    folder = tmp_path_factory.mktemp("chain")
    reconstructed = folder / "reconstruction.safetensors"
    reconstruct.run("tiny", settings, model_file, 4, 0, "blocks", "common", calibration_file, reconstructed, CPU)
    of_eight = folder / "reconstruction-w8.safetensors"
    reconstruct.run("tiny", settings, model_file, 8, 0, "blocks", "common", calibration_file, of_eight, CPU)
    temporal = folder / "reconstruction-temporal.safetensors"
    reconstruct.run("tiny", settings, model_file, 4, 0, "temporal", "common", calibration_file, temporal, CPU)
    checkpoints = []
    for method in ("quest", "nearest", "q-diffusion"):
        checkpoints.append(folder / f"{method}.safetensors")
        finetune.run(
            "tiny",
            settings,
            model_file,
            method,
            "w4a4",
            0,
            calibration_file,
            reconstructed if method != "nearest" else None,
            checkpoints[-1],
            CPU,
        )
    return {
        "model": (model_file,),
        "calibration": (calibration_file,),
        "reconstruction": (reconstructed,),
        "reconstruction of 8 bits": (of_eight,),
        "reconstructions": (of_eight, reconstructed, temporal),
        "checkpoint": (checkpoints[0],),
        "checkpoints": tuple(checkpoints),
    }


@pytest.fixture
def subject(files: dict[str, tuple[Path, ...]], make_settings: Callable[..., DatasetSettings]) -> Subject:
    """The tiny model as a study is given it."""
    return Subject(make_settings(analysis=ANALYSIS), files, 0, CPU)
