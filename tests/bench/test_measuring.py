"""Clocks and tables."""

from __future__ import annotations

import time

import pytest
import torch

from quest.bench import measuring
from quest.report import text


def test_numbers_are_aligned_to_the_right() -> None:
    rows = [("task", "s", "by"), ("features", "1.25", "quest"), ("root", "10", "other")]
    assert text.table(rows) == "task         s  by\nfeatures  1.25  quest\nroot        10  other"


def test_what_a_run_does_once_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def run(steps: int) -> None:
        clock[0] += 5 + 0.25 * steps

    assert measuring.step_seconds(run, 3, "cpu") == pytest.approx(0.25)


def test_peak_memory_of_the_process_sees_what_was_freed() -> None:
    before = measuring.peak_mib("cpu")
    torch.ones(int(before * 2**20) + 2**27, dtype=torch.uint8)
    assert measuring.peak_mib("cpu") > before + 100
