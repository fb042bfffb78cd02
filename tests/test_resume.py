"""A finetuning that was killed goes on where it was, and ends as one that nothing stopped: bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quest.config.dataset import DatasetSettings
from quest.learning import progress as progresses
from quest.learning import reconstruction
from quest.learning.progress import NOT_KEPT, Progress, Training, beside
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
    reconstruct.run("tiny", settings, model_file, 4, 0, "blocks", calibration_file, path, CPU)
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


def test_states_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "a.progress.safetensors"
    state = {"number": 0.1, 3: [torch.tensor([1.5]), None], "flag": True, "nested": {"empty": {}}}
    Progress(path, {"seed": 0}).part("a8").put("unit", state)
    state[3][0].fill_(9)
    read = Progress(path, {"seed": 0}).part("a8").get("unit")
    assert list(read) == list(state)
    assert read[3][0].tolist() == [1.5]
    assert (read["number"], read["flag"], read[3][1], read["nested"]) == (0.1, True, None, {"empty": {}})
    assert Progress(path, {"seed": 0}).get("unit") is None
    assert Progress(path, {"seed": 1}).part("a8").get("unit") is None


def test_nothing_is_kept_without_a_file() -> None:
    NOT_KEPT.put("unit", {"a": 1})
    assert NOT_KEPT.get("unit") is None


def test_a_full_disk_does_not_end_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    progress = Progress(tmp_path / "file" / "a.progress.safetensors", {})
    (tmp_path / "file").write_text("in the way")
    progress.put("unit", {"a": 1})
    assert "could not be written" in caplog.text
    assert "what is done so far is not kept" in caplog.text


def test_a_training_goes_on_with_its_optimizer_schedule_and_order() -> None:
    def begin() -> tuple[torch.nn.Parameter, Training, Callable[[], None]]:
        weight, order = torch.nn.Parameter(torch.ones(3)), torch.Generator().manual_seed(1)
        optimizer = torch.optim.Adam([weight], lr=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

        def step() -> None:
            optimizer.zero_grad()
            (weight * torch.rand(3, generator=order)).square().sum().backward()
            optimizer.step()
            schedule.step()

        return weight, Training([weight], [optimizer, schedule], order), step

    weight, training, step = begin()
    step()
    tensors: dict[str, torch.Tensor] = {}
    state = progresses._unpacked(progresses._packed(training.state(), tensors), tensors)
    step()
    other, resumed, go_on = begin()
    resumed.resume(state)
    go_on()
    assert torch.equal(other, weight)


def test_a_reconstruction_with_damaged_progress_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.progress.safetensors"
    path.write_bytes(b"damaged")
    assert not reconstruction.Progress(path, {}).losses
