"""A finetuning that was killed goes on where it was, and ends as one that nothing stopped: bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quest.config.dataset import DatasetSettings
from quest.learning import progress as progresses
from quest.learning.progress import Progress, beside
from quest.stages import finetune, reconstruct

CPU = torch.device("cpu")
METHODS = ["quest", "q-diffusion", "ptqd", "efficientdm"]


class Killed(BaseException):
    """What ends a stage at once, as nothing in it handles it."""


@pytest.fixture(scope="module")
def rounding(
    tmp_path_factory: pytest.TempPathFactory, model_file: Path, calibration_file: Path, settings: DatasetSettings
) -> Path:
    path = tmp_path_factory.mktemp("rounding") / "rounding.safetensors"
    reconstruct.run("tiny", settings, model_file, 4, 0, "blocks", "common", calibration_file, path, CPU)
    return path


@pytest.fixture
def run(
    settings: DatasetSettings,
    make_settings: Callable[..., DatasetSettings],
    model_file: Path,
    calibration_file: Path,
    rounding: Path,
) -> Callable[..., None]:
    """Finetune the tiny model to a file."""

    def run(output: Path, method: str, seed: int = 0, **changes: Any) -> None:
        chosen = make_settings(**changes) if changes else settings
        start = None if method == "efficientdm" else rounding
        finetune.run("tiny", chosen, model_file, method, "w4a4", seed, calibration_file, start, output, CPU)

    return run


def kill_after(monkeypatch: pytest.MonkeyPatch, states: int) -> list[str]:
    """Kill a stage just after it has kept its progress ``states`` times; the names of those that it kept."""
    kept: list[str] = []
    put = Progress.put

    def put_and_die(self: Progress, name: str, state: Any) -> None:
        put(self, name, state)
        kept.append(self._under + name)
        if len(kept) == states:
            raise Killed

    monkeypatch.setattr(Progress, "put", put_and_die)
    return kept


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{method: (method, {}) for method in METHODS},
    "adapters": ("quest", {"methods": {"quest": {"adapter_rank": 2}}}),
    "widths": ("ptqd", {"methods": {"ptqd": {"step_bits": [2, 4]}}}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_result_is_that_of_one_that_nothing_stopped(
    run: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    method, changes = VARIANTS[name]
    with monkeypatch.context() as patch:
        every = kill_after(patch, -1)
        run(tmp_path / "whole.safetensors", method, **changes)
    expected = (tmp_path / "whole.safetensors").read_bytes()
    assert len(every) >= 2

    output, kept = tmp_path / "killed.safetensors", []
    while not output.exists():  # killed three or four times on its way
        assert len(kept) <= len(every)
        with monkeypatch.context() as patch:
            own = kill_after(patch, max(1, len(every) // 3))
            try:
                run(output, method, **changes)
            except Killed:
                assert not output.exists()
                assert beside(output).exists()
        kept += own
    assert output.read_bytes() == expected
    assert kept == every  # and nothing is done twice
    assert not beside(output).exists()


@pytest.mark.parametrize("change", ["seed", "settings", "code", "damage"])
def test_progress_of_something_else_is_not_gone_on_with(
    run: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    output, whole = tmp_path / "a.safetensors", tmp_path / "whole.safetensors"
    given: dict[str, Any] = {
        "seed": {"seed": 1},
        "settings": {"methods": {"quest": {"cma_epochs": 3}}},
    }.get(change, {})
    run(whole, "quest", **given)
    with monkeypatch.context() as patch:
        kill_after(patch, 3)
        with pytest.raises(Killed):
            run(output, "quest")
    if change == "code":
        monkeypatch.setattr(progresses, "_code", lambda: "other")
    if change == "damage":
        content = bytearray(beside(output).read_bytes())
        content[-1] ^= 1
        beside(output).write_bytes(content)
    with monkeypatch.context() as patch:
        kept = kill_after(patch, -1)
        run(output, "quest", **given)
    assert kept[:2] == ["tla", "tla"]  # from the first epoch on
    assert output.read_bytes() == whole.read_bytes()
