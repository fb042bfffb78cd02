"""Chosen bits beside uniform ones of as many bytes: by every method, and a table that goes on where it was."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quest import methods
from quest.artifacts import ArtifactError
from quest.config.dataset import DatasetSettings
from quest.config.methods import METHODS
from quest.config.values import Bits
from quest.deploy import checkpoints, export
from quest.deploy.quantized import QuantizedModel
from quest.diffusion import denoiser as denoisers
from quest.diffusion.denoiser import Denoiser
from quest.own import choice, front, layerwise

CPU = torch.device("cpu")


def every_third(found: choice.Candidates) -> dict[str, int]:
    return {name: (2, 3, 8)[number % 3] for number, name in enumerate(found.shapes)}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_at_bits_of_layers(
    method: str,
    model_file: Path,
    calibration_file: Path,
    settings: DatasetSettings,
    denoiser: Denoiser,
    tmp_path: Path,
) -> None:
    found = choice.candidates(denoiser, settings, method, Bits(8, 8))
    chosen = every_third(found)
    learned = methods.starts_from(method, settings.method(method))
    rounding, output = tmp_path / "rounding.safetensors", tmp_path / "checkpoint.safetensors"
    if learned is not None:
        layerwise.reconstruct(settings, model_file, found.of(chosen), learned, 0, calibration_file, rounding, CPU)
    files = (calibration_file, None if learned is None else rounding, output, CPU)
    layerwise.finetune(settings, model_file, found.of(chosen), method, 0, *files, {})
    model = QuantizedModel(checkpoints.load(output, denoiser), denoiser)
    bits = {name: layer.weight_parts()[0][0].grid.bits for name, layer in model.network.layers().items()}
    assert {name: bits[name] for name in chosen} == chosen
    size = export.weights_of(export.export(model, tmp_path / "out")).stat().st_size
    assert size <= found.size(chosen) < size + 4_096, "what is counted before is what is written"
    if learned is not None:
        others = found.of({**chosen, next(iter(chosen)): 4})
        with pytest.raises(ArtifactError, match="learned for other bits of layers than were chosen"):
            layerwise.finetune(settings, model_file, others, method, 0, *files, {})


def test_the_table_goes_on(
    make_settings: Callable[..., DatasetSettings], model_file: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    settings = make_settings(model=str(model_file))
    errors = {2: 3.0, 3: 2.0, 4: 1.0, 5: 0.5, 6: 0.2, 8: 0.1}

    def measured(found: choice.Candidates, *_: Any) -> dict[str, dict[int, float]]:
        return {
            name: {bits: error * number for bits, error in errors.items()} for number, name in enumerate(found.shapes)
        }

    monkeypatch.setattr(choice, "measured", measured)

    def made(*bits: int) -> list[dict[str, Any]]:
        return list(front.run("tiny", settings, "nearest", 8, bits, 2, 0, tmp_path / "front", CPU))

    uniform, mixed = made(3)
    assert (uniform["chosen"], mixed["chosen"]) == ("uniform", "mixed")
    assert 0.99 * uniform["share"] < mixed["share"] <= uniform["share"], "at equal size"
    assert [row["chosen"] for row in made(3, 8)] == ["uniform"], "of 3 bits nothing again, of 8 there is one choice"
    with (tmp_path / "front/front.csv").open() as opened:
        rows = list(csv.DictReader(opened))
    assert [(row["bits"], row["chosen"]) for row in rows] == [("3", "uniform"), ("3", "mixed"), ("8", "uniform")]
    assert all(20 < float(row["psnr"]) < 60 for row in rows)
    assert (tmp_path / "front/front.png").read_bytes().startswith(b"\x89PNG")


def test_counting_leaves_the_model_as_it_is(settings: DatasetSettings, model_file: Path) -> None:
    model = denoisers.load(model_file)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    choice.candidates(model, settings, "nearest", Bits(8, 8))
    after = model.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
