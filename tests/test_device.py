"""Device names."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from quest import artifacts, device
from quest.config.values import ConfigError
from quest.device import limited, memory_limit, resolve


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _index: None)
    assert resolve("auto") == torch.device("cuda")


def test_a_gpu_computes_in_float32(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Torch's default rounds the operands of a convolution to TF32; every artifact says which it was."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    manifest = artifacts.Manifest("test")
    assert artifacts.save_json(tmp_path / "before.json", {}, manifest).versions["tf32"] == "on"
    resolve("auto")
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert artifacts.save_json(tmp_path / "after.json", {}, manifest).versions["tf32"] == "off"


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _index: None)
    assert resolve("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ValueError, match="device: 'cuda:1' is not there; this machine has 1 GPUs"):
        resolve("cuda:1")


def test_not_a_device() -> None:
    with pytest.raises(ValueError, match="device: 'graphics' is not a device; expected auto, cpu or cuda"):
        resolve("graphics")


def test_jobs_spread_over_the_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A job takes the GPU that the fewest others have; a place is free again when its process ends."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script = "import sys; from quest.device import _place; print(_place(['a', 'b', 'c']), flush=True); sys.stdin.read()"
    jobs = [
        subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                         env={**os.environ, "TMPDIR": str(tmp_path)})
        for _ in range(5)
    ]  # fmt: skip
    try:
        places = [int(job.stdout.readline()) for job in jobs if job.stdout]
        assert sorted(places) == [0, 0, 1, 1, 2]
        ended = places.index(2)
        jobs[ended].communicate("", timeout=60)
        assert device._place(["a", "b", "c"]) == 2
    finally:
        for job in jobs:
            job.kill()
            job.wait()


def holding(most: int):
    """A call that a memory of ``most`` samples allows, and the sizes that it was called with."""
    sizes: list[int] = []

    def call(size: int) -> int:
        sizes.append(size)
        if size > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")
        return 10 * size

    return call, sizes


def test_a_batch_that_fits_is_called_once() -> None:
    call, sizes = holding(8)
    assert device.within_memory("some.batch_size", 8, call) == 80
    assert sizes == [8]


def test_a_batch_that_does_not_fit_names_its_setting_and_one_that_does() -> None:
    call, sizes = holding(20)
    with pytest.raises(device.OutOfMemory) as caught:
        device.within_memory("some.batch_size", 100, call)
    assert sizes == [100, 50, 25, 12]
    assert str(caught.value) == (
        "some.batch_size: a batch of 100 does not fit in the device's memory (CUDA out of memory); 12 fits, found by "
        "halving: set some.batch_size to 12, or free the device"
    )


def test_not_even_a_single_sample_fits() -> None:
    call, sizes = holding(0)
    with pytest.raises(device.OutOfMemory, match=r"a batch of 3 .* nor does a single sample"):
        device.within_memory("some.batch_size", 3, call)
    assert sizes == [3, 1]


def test_other_errors_are_what_they_are() -> None:
    def call(size: int) -> None:
        raise RuntimeError(f"{size} is odd")

    with pytest.raises(RuntimeError, match="7 is odd"):
        device.within_memory("some.batch_size", 7, call)


def test_a_limit_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(device.MEMORY, raising=False)
    assert memory_limit() == math.inf
    monkeypatch.setenv(device.MEMORY, "1.5")
    assert memory_limit() == 1.5 * 2**30
    with limited(None):
        assert memory_limit() == 1.5 * 2**30, "nothing was said"
    with limited(2):
        assert memory_limit() == 2**31
    with limited(math.inf):
        assert memory_limit() == math.inf
    assert memory_limit() == 1.5 * 2**30


@pytest.mark.parametrize("given", ["24 GiB", "0", "-1", "nan"])
def test_a_limit_that_is_none(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv(device.MEMORY, given)
    with pytest.raises(ConfigError, match=f"^QUEST_MEMORY_GIB: found '{given}'; expected GiB, a number above 0$"):
        memory_limit()


def test_what_is_held_now() -> None:
    before = device.held(torch.device("cpu"))
    held = torch.ones(2**24)
    assert 0.5 * 2**26 < device.held(torch.device("cpu")) - before < 2**27, len(held)
