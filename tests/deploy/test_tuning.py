"""Trials are scored on calibration data that they have not seen, and a wrong key costs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from quest.config.dataset import DatasetSettings
from quest.config.values import Bits, ConfigError
from quest.deploy import tuning
from quest.diffusion.correction import Correction
from quest.diffusion.denoiser import Denoiser
from quest.learning.calibration import Calibration


def test_values_are_numbers_where_they_can_be() -> None:
    assert tuning.parse("methods.quest.cma_weight_lr=1e-5,0.1") == ("methods.quest.cma_weight_lr", [1e-5, 0.1])
    assert tuning.parse("methods.quest.local_loss=true,false") == ("methods.quest.local_loss", [True, False])
    assert tuning.parse("quantizer.weight_search=max,mse") == ("quantizer.weight_search", ["max", "mse"])
    with pytest.raises(ValueError, match="'lr' is not <key>=<value>"):
        tuning.parse("lr")


def run(settings: DatasetSettings, model: Path, calibration: Path, vary: dict[str, Any]) -> list[tuning.Trial]:
    given = {"model": model, "seed": 0, "calibration": calibration, "reconstruction": None}
    return list(tuning.trials(settings, "nearest", Bits(4, 4), **given, vary=vary, device=torch.device("cpu")))


def test_every_combination_is_tried_and_more_sets_fit_better(
    settings: DatasetSettings, model_file: Path, calibration_file: Path
) -> None:
    search = {"quantizer.activation_search": ["max", "percentile"], "methods.nearest.sets": [1, 4]}
    done = run(settings, model_file, calibration_file, search)
    assert [list(trial.changes.values()) for trial in done] == [
        ["max", 1],
        ["max", 4],
        ["percentile", 1],
        ["percentile", 4],
    ]
    assert len({trial.loss for trial in done}) == 4
    assert all(trial.loss > 0 for trial in done)
    best = min(done, key=lambda trial: trial.loss)
    first = [cell.strip() for cell in tuning.markdown(done).splitlines()[2].strip("|").split("|")]
    assert first[: len(best.changes)] == [str(value) for value in best.changes.values()]


def test_the_loss_is_that_of_the_predicted_noise(
    denoiser: Denoiser, calibration: Calibration, make_quantized: Any
) -> None:
    samples = calibration.samples(2)
    wanted = tuning.full_precision_noise(denoiser.network, samples)
    weights = torch.tensor([0.5, 1.0, 2.0, 0.5])  # of four steps, 1 on average
    network = make_quantized("w4a4")
    with network.quantizing(weights=False, activations=False):
        assert tuning.noise_error(network, samples, wanted, weights) == pytest.approx(0, abs=1e-12)
        bias = Correction(torch.zeros(4), torch.full((4, 1), 0.5), torch.zeros(4))
        assert tuning.noise_error(network, samples, wanted, weights, bias) == pytest.approx(0.25, rel=1e-5)
    assert tuning.noise_error(network, samples, wanted, weights) > 1e-6
    by_step = [tuning.noise_error(network, samples, wanted, one) for one in torch.eye(4)]
    weighted = sum(w * error for w, error in zip(weights.tolist(), by_step, strict=True))
    assert tuning.noise_error(network, samples, wanted, weights) == pytest.approx(weighted)


def test_a_key_that_is_not_there_is_named_before_anything_runs(settings: DatasetSettings, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--vary: methods\.nearest\.set: unknown 'set' \(did you mean 'sets'\?\)"):
        run(settings, tmp_path / "none", tmp_path / "none", {"methods.nearest.set": [1]})


def test_only_what_was_set_has_to_fit_the_steps(settings: DatasetSettings) -> None:
    content = settings.model_dump(mode="json", exclude_unset=True)
    content |= {"methods": {"nearest": {"sets": 1}}}
    for section in ("sampler", "calibration"):
        content[section] = content[section] | {"steps": 7}
    few = DatasetSettings.model_validate(content)
    assert tuning._changed(few, {"quantizer.activation_search": "max"}).quantizer.activation_search == "max"
    with pytest.raises(ConfigError, match=r"methods\.nearest\.sets is 2, which does not divide sampler\.steps = 7"):
        tuning._changed(few, {"methods.nearest.sets": 2})


def test_small_losses_keep_their_digits() -> None:
    done = [tuning.Trial({"sets": 1}, 4.0123e-5, 1.0), tuning.Trial({"sets": 2}, 3.9876e-5, 1.0)]
    assert [line.split("|")[2].strip() for line in tuning.markdown(done).splitlines()[2:]] == ["3.988e-05", "4.012e-05"]
