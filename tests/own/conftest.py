"""Calls of the network are not timed in these tests, but the one that times them: each takes what it is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quest.estimate.calls import Calls, Took


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what a call takes, from now on."""

    def take(each: float) -> None:
        monkeypatch.setattr(Calls, "take", lambda *_: Took(each, 1e6))

    take(0.001)
    return take


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: Any) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
