"""Jobs wait for each other, for cores and for GPUs; the longest chain goes first."""

from __future__ import annotations

import pytest

from quest.estimate.plan import Job
from quest.estimate.schedule import schedule


def jobs(*needs: tuple[int, ...], threads: int = 1, gpu: int = 0) -> list[Job]:
    return [Job("rule", (str(number),), {}, None, threads, gpu, each) for number, each in enumerate(needs)]


def test_a_chain_takes_as_long_as_all_its_jobs() -> None:
    found = schedule(jobs((), (0,), (1,)), [1, 2, 3], [10, 20, 5], cores=4, gpus=None)
    assert found == (6, 6, 20)


def test_jobs_side_by_side_take_the_longest_and_the_memory_of_all() -> None:
    found = schedule(jobs((), (), ()), [1, 2, 3], [10, 20, 5], cores=3, gpus=None)
    assert found == (3, 3, 35)


def test_fewer_cores_take_turns_the_longest_chain_first() -> None:
    # 0 → 3 is the longest chain; 1 and 2 go beside it.
    found = schedule(jobs((), (), (), (0,)), [2, 1, 1, 2], [1] * 4, cores=2, gpus=None)
    assert found.seconds == found.critical == 4


@pytest.mark.parametrize(("gpus", "seconds"), [(1, 6), (2, 4), (3, 2), (None, 2)])
def test_gpus_are_shared_like_cores(gpus: int | None, seconds: float) -> None:
    assert schedule(jobs((), (), (), gpu=1), [2, 2, 2], [1] * 3, cores=8, gpus=gpus).seconds == seconds


def test_more_threads_than_cores_are_all_cores() -> None:
    assert schedule(jobs((), (), threads=4), [2, 2], [1] * 2, cores=2, gpus=None).seconds == 4


def test_nothing_takes_no_time() -> None:
    assert schedule([], [], [], cores=2, gpus=None) == (0, 0, 0)
