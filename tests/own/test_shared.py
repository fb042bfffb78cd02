"""One of several processes makes a file; the others wait, and take it; one that fails lets the next."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest

from quest.own import shared


def slowly(path: Path) -> None:
    shared.made(path, lambda file: (time.sleep(0.3), (file.parent / "made").open("a").write("x"), file.write_text("1")))


def test_the_others_wait(tmp_path: Path) -> None:
    processes = [multiprocessing.Process(target=slowly, args=(tmp_path / "work/file",)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "work/made").read_text() == "x", "it is made once"
    assert sorted(each.name for each in (tmp_path / "work").iterdir()) == ["file", "made"], "no lock is left"


def test_who_fails_lets_the_next(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        shared.made(tmp_path / "file", lambda _: 1 / 0)
    assert shared.made(tmp_path / "file", lambda file: file.write_text("2")).read_text() == "2"
