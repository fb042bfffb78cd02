"""States of a stage come back as they were, and only to what they belong to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quest.learning import optimizers, reconstruction
from quest.learning import progress as progresses
from quest.learning.progress import NOT_KEPT, Progress, Training


def test_states_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "a.progress.safetensors"
    state: Any = {"number": 0.1, 3: [torch.tensor([1.5]), None], "flag": True, "nested": {"empty": {}}}
    Progress(path, {"seed": 0}).part("a8").put("unit", state)
    state[3][0].fill_(9)
    read: Any = Progress(path, {"seed": 0}).part("a8").get("unit")
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


def test_a_training_goes_on_with_its_optimizer_rate_and_order() -> None:
    def begin() -> tuple[torch.nn.Parameter, Training, Callable[[], None]]:
        weight, order = torch.nn.Parameter(torch.ones(3)), torch.Generator().manual_seed(1)
        optimizer = optimizers.adam([weight], 0.1)

        def step() -> None:
            optimizer.zero_grad()
            (weight * torch.rand(3, generator=order)).square().sum().backward()
            optimizer.step()

        return weight, Training([weight], [optimizer], order), step

    weight, training, step = begin()
    step()
    optimizers.set_rates(training._optimizers[0], [0.05])
    tensors: dict[str, torch.Tensor] = {}
    state = progresses._unpacked(progresses._packed(training.state(), tensors), tensors)
    step()
    other, resumed, go_on = begin()
    rate = resumed._optimizers[0].param_groups[0]["lr"]
    resumed.resume(state)
    assert resumed._optimizers[0].param_groups[0]["lr"] is rate, "on its device, where a recorded step reads it"
    go_on()
    assert torch.equal(other, weight)


def test_a_reconstruction_with_damaged_progress_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.progress.safetensors"
    path.write_bytes(b"damaged")
    assert not reconstruction.Progress(path, {}).losses
