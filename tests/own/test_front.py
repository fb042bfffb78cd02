"""Chosen bits beside uniform ones of as many bytes: by every method, in a folder that goes on where it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quest import artifacts, methods
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


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was made of what points share. Sensitivities are given: of each layer more than of the one before it."""
    errors, found = {2: 3.0, 3: 2.0, 4: 1.0, 5: 0.5, 6: 0.2, 8: 0.1}, []

    def measured(candidates: choice.Candidates, *_: Any) -> dict[str, dict[int, float]]:
        found.append("sensitivity")
        names = enumerate(candidates.shapes)
        return {name: {bits: error * number for bits, error in errors.items()} for number, name in names}

    def reconstruct(*given: Any) -> None:
        found.append("rounding")
        learn(*given)

    learn = layerwise.reconstruct
    monkeypatch.setattr(choice, "measured", measured)
    monkeypatch.setattr(layerwise, "reconstruct", reconstruct)
    return found


@pytest.fixture
def make(make_settings: Callable[..., DatasetSettings], model_file: Path, tmp_path: Path, counted: list[str]) -> Any:
    """Points of a method, in one folder."""

    def made(method: str, *bits: str, measured: Path | None = None) -> list[dict[str, Any]]:
        given = (list(map(Bits.parse, bits)), ("uniform", "mixed"), 2, 0, tmp_path / "front", CPU, measured)
        return list(front.run("tiny", make_settings(model=str(model_file)), method, *given))

    return made


def test_a_folder_of_points_goes_on(make: Any, tmp_path: Path) -> None:
    uniform, mixed = make("nearest", "w3a8")
    assert (uniform["chosen"], mixed["chosen"]) == ("uniform", "mixed")
    assert 0.99 * uniform["bytes"] < mixed["bytes"] <= uniform["bytes"], "at equal size"
    assert [row["chosen"] for row in make("nearest", "w3a8", "w8a8")] == ["uniform"], "of 8 bits there is one choice"
    names = sorted(file.name for file in (tmp_path / "front").glob("*"))
    assert names == [f"nearest-{each}-seed0.json" for each in ("w3a8-mixed", "w3a8-uniform", "w8a8-uniform")] + ["work"]
    assert not list((tmp_path / "front/work").glob("nearest*")), "checkpoints are not kept"
    point = artifacts.load_json(tmp_path / "front/nearest-w3a8-mixed-seed0.json", "point")
    assert Counter(map(str, point.manifest.notes["choice"].values())) == mixed["layers"]
    assert 20 < mixed["psnr"] < 60


def test_methods_share_what_none_of_them_changes(make: Any, counted: list[str]) -> None:
    rows = make("q-diffusion", "w3a8", "w3a4") + make("quest", "w3a8") + make("traq", "w3a4")
    assert counted == ["rounding", "sensitivity", "rounding"], "uniform and chosen, of two activation widths"
    mixed = [row for row in rows if row["chosen"] == "mixed"]
    assert (len(rows), len({str(row["layers"]) for row in mixed})) == (8, 1)
    make("tfmq-dm", "w3a8")
    assert counted[3:] == ["rounding"] * 2, "grouped otherwise"


def test_uniform_bits_of_the_tables_are_taken(make: Any, model_file: Path, tmp_path: Path) -> None:
    made_of = {"model": artifacts.read_manifest(model_file, "model").sha256}
    cell = tmp_path / "metrics/nearest-w4a8-seed0.json"

    def measured(images: int, **inputs: str) -> None:
        notes = {"mse_of_images": [0.01] * images}
        artifacts.save_json(cell, {}, artifacts.Manifest("metrics", inputs=made_of | inputs, notes=notes))

    measured(1)
    (row, _) = make("nearest", "w4a8", measured=cell.parent)
    assert (row["source"], row["images"]) == ("chain", 2), "of too few images it is made"
    (tmp_path / "front/nearest-w4a8-uniform-seed0.json").unlink()
    measured(3)
    (table,) = make("nearest", "w4a8", measured=cell.parent)
    assert (table["source"], table["images"], table["psnr"], table["bytes"]) == ("table", 2, 20.0, row["bytes"])
    measured(3, model="other")
    (tmp_path / "front/nearest-w4a8-uniform-seed0.json").unlink()
    with pytest.raises(ArtifactError, match="measured of another model"):
        make("nearest", "w4a8", measured=cell.parent)


def test_counting_leaves_the_model_as_it_is(settings: DatasetSettings, model_file: Path) -> None:
    model = denoisers.load(model_file)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    choice.candidates(model, settings, "nearest", Bits(8, 8))
    after = model.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
